"""Pass: two native products, one behind the other, become one operator whose rows in between stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from poolgraph.graphs.native import NATIVE_DOMAIN, PRODUCTS, Norm, native_nodes, number
from poolgraph.graphs.pattern import producer, replace_node, used_once


def fuse_feed_forward(model: ir.Model) -> int:
    """Fuse a product and the product of its kind that alone reads it.

    Given:   %h = poolgraph.cpu::FusedMatMul(%x, ...);  %y = poolgraph.cpu::FusedMatMul(%h, ...)
    Result:  %y = poolgraph.cpu::FusedFeedForward(%x, ...)
    """
    return sum(_fuse(model.graph, node) for node in native_nodes(model, *PRODUCTS))


def _fuse(graph: ir.Graph, down: ir.Node) -> int:
    between, kind = down.inputs[0], PRODUCTS[down.op_type]
    up = producer(between, kind.matmul, NATIVE_DOMAIN)
    if up is None or between is None or not used_once(between) or not (_is_plain(up) and _is_plain(down)):
        return 0
    attributes = {
        f"{prefix}{name}": _value(node, name)
        for prefix, node in (("up_", up), ("down_", down))
        for name in kind.attributes
    }
    fused = ir.node(
        kind.feed_forward,
        [up.inputs[0], *_product_inputs(up), *_product_inputs(down)],
        {**attributes, "norm": int(Norm.NONE), "epsilon": 0.0},
        domain=NATIVE_DOMAIN,
    )
    replace_node(graph, down, [fused], fused.outputs[0])
    graph.remove(up, safe=True)
    return 1


def _is_plain(node: ir.Node) -> bool:
    return number(node, "norm") == Norm.NONE and len(node.inputs) <= 1 + PRODUCTS[node.op_type].num_inputs


def _value(node: ir.Node, name: str) -> int | float:
    value: int | float = node.attributes[name].value
    return value


def _product_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    count = PRODUCTS[node.op_type].num_inputs
    return (*node.inputs[1:], *[None] * count)[:count]
