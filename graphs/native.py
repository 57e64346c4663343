"""The operators of this package's own library for the CPU: their names, inputs and attributes.

``runtime/kernels.cpp`` computes them. The numbers of activations and norms are those of its enumerations.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import onnx_ir as ir

NATIVE_DOMAIN: Final = "poolgraph.cpu"

QUANTIZED_MATMUL: Final = "QuantizedMatMul"
"""``finish(activation(rows @ weights + bias) + residual)``.

Inputs: rows (..., in_features); weights (in_features, out_features) of int8; scales (out_features,); then, each
optional, bias (out_features,), what rows are multiplied by first (in_features,), residual (..., out_features), the
norm's weight and bias (out_features,). Outputs: the answer; the sum in front of the norm, where it is asked for.
"""

QUANTIZED_FEED_FORWARD: Final = "QuantizedFeedForward"
"""Two products, the first with its activation: rows; weights, scales, bias, factors of the first; the same of the
second; residual, the norm's weight and bias. Attributes of the products have the prefixes ``up_`` and ``down_``."""

ATTENTION: Final = "Attention"
"""Query, key and value (batch_size, sequence_length, heads * head_size), or all three side by side in the first input.

Packed texts are one row, (1, num_tokens, ...), with their bounds, ``cu_seqlens`` (batch_size + 1,) of int64, as the
fourth input. The query may then also be one a text, (1, batch_size, ...), that sees its whole text.
"""

PACKED_BOUNDS: Final = 3
"""Index of the bounds among the inputs of an attention."""

TEXT_SUM: Final = "TextSum"
"""Weights (batch_size, num_tokens) times rows (num_tokens, size), in the order of the tokens, weights of 0 skipped."""

MATMUL_RESIDUAL: Final = 5
FEED_FORWARD_RESIDUAL: Final = 9
"""Index of the residual among the inputs; the norm's weight and bias follow."""


class Activation(IntEnum):
    """What is applied to a product's columns."""

    NONE = 0
    GELU = 1
    GELU_TANH = 2
    SILU = 3
    RELU = 4


class Gate(IntEnum):
    """Which half of a product's columns, under the activation, multiplies the other half."""

    NONE = 0
    FIRST = 1
    SECOND = 2


class Norm(IntEnum):
    """What follows the sum."""

    NONE = 0
    LAYER = 1
    ROOT_MEAN_SQUARE = 2


def product_attributes(*, scale: float, zero_point: int) -> dict[str, int | float]:
    """Return the attributes of a bare ``QuantizedMatMul``; ``scale`` 0 rounds each row by its own range."""
    product = {"scale": scale, "zero_point": zero_point, "activation": int(Activation.NONE), "gate": int(Gate.NONE)}
    return {**product, "norm": int(Norm.NONE), "epsilon": 0.0}


PRODUCT_ATTRIBUTES: Final = ("scale", "zero_point", "activation", "gate")
"""Those of a product alone, which get a prefix where there are two."""


def native_nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """List the nodes of this package's operators, in order."""
    return [node for node in model.graph if node.domain == NATIVE_DOMAIN and node.op_type in op_types]


def number(node: ir.Node, name: str) -> int:
    """Return an integer attribute."""
    return node.attributes[name].as_int()


def set_number(node: ir.Node, name: str, value: int) -> None:
    """Set an integer attribute."""
    node.attributes[name] = ir.AttrInt64(name, int(value))
