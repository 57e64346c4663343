"""Pass: experts that are all computed, and weighted, become an operator that computes those alone that count."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from poolgraph.graphs.match_gates import Finished, match_gate
from poolgraph.graphs.native import (
    NATIVE_DOMAIN,
    PRODUCTS,
    is_plain,
    native_nodes,
    number,
    pair_attributes,
    product_inputs,
    set_numbers,
)
from poolgraph.graphs.pattern import dimensions, is_initializer, producer, replace_node, used_once

MOST_GATE_STEPS: Final = 8
"""Nodes between the columns of a product and what a gate makes of them, at most."""


def fuse_experts(model: ir.Model) -> int:
    """Fuse the products of experts side by side, whose rows in between are multiplied by their weights.

    Given:   %h = Reshape(poolgraph.cpu::FusedMatMul(%x, ...))  # (..., num_experts, size), gated if there is a gate
             %y = poolgraph.cpu::FusedMatMul(Reshape(Mul(%h, Unsqueeze(%weights))), ...)
    Result:  %y = poolgraph.cpu::FusedExperts(%x, %weights, ...)
    """
    return sum(_fuse(model.graph, node) for node in native_nodes(model, *PRODUCTS))


def _fuse(graph: ir.Graph, down: ir.Node) -> int:
    weighted = _before_reshape(down.inputs[0])
    product = producer(weighted, "Mul")
    is_bare = is_plain(down) and not (number(down, "activation") or number(down, "gate"))  # what is summed is
    if not is_bare or weighted is None or product is None or not (used_once(weighted) and _is_read_once(down)):
        return 0
    for weights, inner in (product.inputs, product.inputs[::-1]):
        unsqueezed = producer(weights, "Unsqueeze")
        if (
            unsqueezed is not None
            and _is_of_experts(unsqueezed, inner, down)
            and _fuse_pair(graph, down, unsqueezed, inner)
        ):
            return 1
    return 0


def _is_read_once(node: ir.Node) -> bool:
    """Whether nothing else reads the rows of a product."""
    rows = node.inputs[0]
    return rows is not None and used_once(rows)


def _before_reshape(value: ir.Value | None) -> ir.Value | None:
    """Return what alone is reshaped into ``value``."""
    reshape = producer(value, "Reshape")
    return None if reshape is None else reshape.inputs[0]


def _is_of_experts(unsqueezed: ir.Node, inner: ir.Value | None, down: ir.Node) -> bool:
    """Whether rows (..., num_experts, size) are multiplied by (..., num_experts, 1) and then laid side by side."""
    rows, weights = dimensions(inner) or (), dimensions(unsqueezed.outputs[0]) or ()
    if len(rows) < 3:
        return False
    num_experts, size = rows[-2:]
    if not (isinstance(num_experts, int) and isinstance(size, int)):
        return False
    return weights == (*rows[:-1], 1) and dimensions(down.inputs[0]) == (*rows[:-2], num_experts * size)


def _fuse_pair(graph: ir.Graph, down: ir.Node, unsqueezed: ir.Node, inner: ir.Value | None) -> int:
    kind, num_experts = PRODUCTS[down.op_type], (dimensions(inner) or ())[-2]
    found = _gate_behind(inner)
    columns = inner if found is None else found[0]
    rows = _before_reshape(columns)
    up = producer(rows, kind.matmul, NATIVE_DOMAIN)
    if up is None or rows is None or inner is None or not (used_once(rows) and used_once(inner) and is_plain(up)):
        return 0
    *front, _, size = dimensions(columns) or (None, None)
    if not isinstance(size, int) or dimensions(rows) != (*front, num_experts * size):
        return 0
    if number(up, "gate") or (found is not None and number(up, "activation")):
        return 0
    set_numbers(up, {} if found is None else found[1].attributes)
    inputs = [up.inputs[0], unsqueezed.inputs[0], *product_inputs(up), *product_inputs(down)]
    attributes = {**pair_attributes(up, down), "num_experts": int(num_experts)}
    fused = ir.node(kind.experts, inputs, attributes, domain=NATIVE_DOMAIN)
    replace_node(graph, down, [fused], fused.outputs[0])
    return 1


def _gate_behind(inner: ir.Value | None) -> tuple[ir.Value, Finished] | None:
    """Return the columns of which a gate makes ``inner``, and what it does to them; None if no gate made it."""
    node = inner.producer() if inner is not None else None
    for _ in range(MOST_GATE_STEPS):
        made = [] if node is None else [it for it in node.inputs if it is not None and not is_initializer(it)]
        if not made:
            return None
        source = made[0]
        found = match_gate(source)
        if found is not None and found.value is inner:
            return source, found
        node = source.producer()
    return None
