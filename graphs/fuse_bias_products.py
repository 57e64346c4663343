"""Pass: products with their bias and GELU to this package's operator for CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import onnx_ir as ir

from poolgraph.graphs.native import Activation
from poolgraph.graphs.pattern import CONTRIB_DOMAIN, dimensions, is_initializer, producer, replace_node, used_once

CUDA_DOMAIN: Final = "poolgraph.cuda"

BIAS_MATMUL: Final = "BiasMatMul"
"""``activation(rows @ weights + bias)``, which ``runtime/kernels_cuda.cpp`` computes.

Inputs: rows (..., in_features), weights (in_features, out_features), bias (out_features,), all in 16 bits. Outputs: the
answer (..., out_features); memory that the kernel works with, (bytes,) of uint8, which nothing reads.
"""

FEATURE_MULTIPLE: Final = 8
"""Rows of so many features of 16 bits begin where cuBLASLt's kernels can read them: at a multiple of 16 bytes."""

_HALVES: Final = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_ACTIVATIONS: Final[Mapping[tuple[str, str], Activation]] = MappingProxyType(
    {
        ("", "Add"): Activation.NONE,
        (CONTRIB_DOMAIN, "BiasGelu"): Activation.GELU_TANH,
        (CONTRIB_DOMAIN, "FastGelu"): Activation.GELU_TANH,
    }
)
"""What adds a bias, and what it applies to the sum: cuBLASLt has one GELU, that by a hyperbolic tangent."""


def fuse_bias_products(model: ir.Model) -> int:
    """Take the bias of a product in 16 bits, and the GELU behind it, into the product.

    Given:   %y = com.microsoft::BiasGelu(MatMul(%x, %W), %b), or FastGelu
    Result:  %y = poolgraph.cuda::BiasMatMul(%x, %W, %b) {activation: GELU_TANH}
    Given:   %y = Add(MatMul(%x, %W), %b)
    Result:  %y = poolgraph.cuda::BiasMatMul(%x, %W, %b) {activation: NONE}

    ONNX Runtime computes each of them in a pass of its own, which reads and writes all the rows. GELU by a hyperbolic
    tangent is within 5e-4 of the exact one, which is what float16 rounds numbers from 1 to 2 by. Dead nodes must be
    gone: a product that one of them reads stays.
    """
    rewrites = 0
    for node in list(model.graph):
        fused = _fused(node)
        if fused is not None:
            model.graph.opset_imports[CUDA_DOMAIN] = 1
            replace_node(model.graph, node, [fused], fused.outputs[0])
            rewrites += 1
    return rewrites


def has_bias_products(model: ir.Model) -> bool:
    """Whether a graph has products with a bias in them."""
    return any((node.domain, node.op_type) == (CUDA_DOMAIN, BIAS_MATMUL) for node in model.graph)


def _fused(node: ir.Node) -> ir.Node | None:
    activation = _ACTIVATIONS.get((node.domain, node.op_type))
    if activation is None or len(node.inputs) != 2:
        return None
    for rows, bias in (node.inputs, reversed(node.inputs)):
        product = producer(rows, "MatMul")
        if product is not None and used_once(product.outputs[0]) and _fits(product, bias):
            fused = ir.node(
                BIAS_MATMUL, [*product.inputs, bias], {"activation": int(activation)}, domain=CUDA_DOMAIN, num_outputs=2
            )
            fused.outputs[1].type = ir.TensorType(ir.DataType.UINT8)
            fused.outputs[1].name = f"{node.outputs[0].name}.workspace"
            return fused
    return None


def _fits(product: ir.Node, bias: ir.Value | None) -> bool:
    weights = product.inputs[1]
    sizes = dimensions(weights) or ()
    return (
        is_initializer(weights)
        and is_initializer(bias)
        and weights is not None
        and weights.dtype in _HALVES
        and len(sizes) == 2
        and dimensions(bias) == sizes[1:]
        and not any(int(size) % FEATURE_MULTIPLE for size in sizes)
    )
