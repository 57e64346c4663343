"""Pass: two 8-bit products, one behind the other, become one operator whose rows in between stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from poolgraph.graphs.native import (
    NATIVE_DOMAIN,
    PRODUCT_ATTRIBUTES,
    QUANTIZED_FEED_FORWARD,
    QUANTIZED_MATMUL,
    Norm,
    native_nodes,
    number,
)
from poolgraph.graphs.pattern import producer, replace_node, used_once

NUM_PRODUCT_INPUTS = 4
"""Weights, scales, bias, factors of the rows."""


def fuse_feed_forward(model: ir.Model) -> int:
    """Fuse a product and the product that alone reads it.

    Given:   %h = poolgraph.cpu::QuantizedMatMul(%x, ...);  %y = poolgraph.cpu::QuantizedMatMul(%h, ...)
    Result:  %y = poolgraph.cpu::QuantizedFeedForward(%x, ...)
    """
    return sum(_fuse(model.graph, node) for node in native_nodes(model, QUANTIZED_MATMUL))


def _fuse(graph: ir.Graph, down: ir.Node) -> int:
    between = down.inputs[0]
    up = producer(between, QUANTIZED_MATMUL, NATIVE_DOMAIN)
    if up is None or between is None or not used_once(between) or not (_is_plain(up) and _is_plain(down)):
        return 0
    attributes = {
        f"{prefix}{name}": _value(node, name)
        for prefix, node in (("up_", up), ("down_", down))
        for name in PRODUCT_ATTRIBUTES
    }
    fused = ir.node(
        QUANTIZED_FEED_FORWARD,
        [up.inputs[0], *_product_inputs(up), *_product_inputs(down)],
        {**attributes, "norm": int(Norm.NONE), "epsilon": 0.0},
        domain=NATIVE_DOMAIN,
    )
    replace_node(graph, down, [fused], fused.outputs[0])
    graph.remove(up, safe=True)
    return 1


def _is_plain(node: ir.Node) -> bool:
    return number(node, "norm") == Norm.NONE and len(node.inputs) <= 1 + NUM_PRODUCT_INPUTS


def _value(node: ir.Node, name: str) -> int | float:
    value: int | float = node.attributes[name].value
    return value


def _product_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    return (*node.inputs[1:], None, None, None)[:NUM_PRODUCT_INPUTS]
