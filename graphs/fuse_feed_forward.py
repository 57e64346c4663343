"""Pass: two native products, one behind the other, become one operator whose rows in between stay in the cache."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.native import NATIVE_DOMAIN, PRODUCTS, is_plain, native_nodes, pair_attributes, product_inputs
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
    if up is None or between is None or not used_once(between) or not (is_plain(up) and is_plain(down)):
        return 0
    inputs = [up.inputs[0], *product_inputs(up), *product_inputs(down)]
    fused = ir.node(kind.feed_forward, inputs, pair_attributes(up, down), domain=NATIVE_DOMAIN)
    replace_node(graph, down, [fused], fused.outputs[0])
    graph.remove(up, safe=True)
    return 1
