"""Passes: the activation behind a native product, and the gate of a gated one, become part of it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from poolgraph.graphs.native import PRODUCTS, Activation, Gate, native_nodes, number, set_number
from poolgraph.graphs.pattern import dimensions, producer, stand_in, used_once


def fuse_activations(model: ir.Model) -> int:
    """Fuse GELU, SiLU and ReLU into the product in front of them, whether of floats or of bytes.

    Given:   %x = poolgraph.cpu::FusedMatMul(...);  %y = Gelu(%x)
    Result:  %y = poolgraph.cpu::FusedMatMul(...) with activation
    """
    return sum(_fuse_activation(model.graph, node) for node in _bare_products(model))


def fuse_gates(model: ir.Model) -> int:
    """Fuse the two halves of a gated product.

    Given:   %a, %b = Split(poolgraph.cpu::FusedMatMul(...));  %y = Mul(Gelu(%a), %b)
    Result:  %y = poolgraph.cpu::FusedMatMul(...) with activation and gate
    """
    return sum(_fuse_gate(model.graph, node) for node in _bare_products(model))


def _bare_products(model: ir.Model) -> list[ir.Node]:
    """List the products whose columns are used as they are."""
    return [
        node
        for node in native_nodes(model, *PRODUCTS)
        if number(node, "activation") == Activation.NONE
        and number(node, "gate") == Gate.NONE
        and len(node.inputs) <= 1 + PRODUCTS[node.op_type].num_inputs
    ]


def _fuse_activation(graph: ir.Graph, node: ir.Node) -> int:
    found = _match_activation(node.outputs[0])
    if found is None:
        return 0
    activation, last, nodes = found
    set_number(node, "activation", activation)
    _take_place(graph, node, last, nodes)
    return 1


def _fuse_gate(graph: ir.Graph, node: ir.Node) -> int:
    found = match_gate(node.outputs[0])
    if found is None:
        return 0
    set_number(node, "activation", found.activation)
    set_number(node, "gate", found.gate)
    _take_place(graph, node, found.nodes[0].outputs[0], found.nodes)
    return 1


@dataclass(frozen=True, slots=True)
class GatedColumns:
    """What is made of a product's columns, and the nodes that do it, the last one first."""

    activation: Activation
    gate: Gate
    nodes: list[ir.Node]


def match_gate(value: ir.Value) -> GatedColumns | None:
    """Match one half of the last axis, under an activation, times the other half."""
    halves = _match_halves(value)
    if halves is None:
        return None
    split, first, second = halves
    for gate, (active, other) in {Gate.FIRST: (first, second), Gate.SECOND: (second, first)}.items():
        found = _match_activation(active)
        if found is None or not (used_once(found[1]) and used_once(other)):
            continue
        activation, activated, nodes = found
        (use,), (other_use,) = activated.uses(), other.uses()
        if use.node is other_use.node and (use.node.domain, use.node.op_type) == ("", "Mul"):
            return GatedColumns(activation, gate, [use.node, *nodes, split])
    return None


def _match_halves(value: ir.Value) -> tuple[ir.Node, ir.Value, ir.Value] | None:
    """Return the Split that alone reads ``value``, and its two equal outputs."""
    if not used_once(value):
        return None
    (use,) = value.uses()
    split = use.node
    if (split.domain, split.op_type) != ("", "Split") or len(split.outputs) != 2:
        return None
    first, second = split.outputs
    sizes = [(dimensions(half) or (None,))[-1] for half in (first, second)]
    rank = len(dimensions(first) or ())
    is_last = split.attributes["axis"].as_int() in {-1, rank - 1} if "axis" in split.attributes else rank == 1
    return (split, first, second) if is_last and sizes[0] == sizes[1] and isinstance(sizes[0], int) else None


def _match_activation(value: ir.Value) -> tuple[Activation, ir.Value, list[ir.Node]] | None:
    """Return what activation is applied to ``value`` and to nothing else of it, its result, and its nodes."""
    nodes = [use.node for use in value.uses()]
    if value.is_graph_output():
        return None
    if len(nodes) == 1:
        (node,) = nodes
        if (node.domain, node.op_type) == ("", "Gelu"):
            tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
            return (Activation.GELU_TANH if tanh else Activation.GELU), node.outputs[0], [node]
        if (node.domain, node.op_type) == ("", "Relu"):
            return Activation.RELU, node.outputs[0], [node]
        return None
    return _match_silu(value, nodes)


def _match_silu(value: ir.Value, nodes: list[ir.Node]) -> tuple[Activation, ir.Value, list[ir.Node]] | None:
    """Match ``value * Sigmoid(value)``."""
    products = [node for node in nodes if (node.domain, node.op_type) == ("", "Mul")]
    if len(nodes) != 2 or len(products) != 1:
        return None
    (product,) = products
    (sigmoid,) = [producer(other, "Sigmoid") for other in product.inputs if other is not value] or [None]
    if sigmoid is None or sigmoid.inputs[0] is not value or not used_once(sigmoid.outputs[0]):
        return None
    return Activation.SILU, product.outputs[0], [product, sigmoid]


def _take_place(graph: ir.Graph, node: ir.Node, old: ir.Value, nodes: list[ir.Node]) -> None:
    """Let ``node``'s answer stand for ``old``, which ``nodes``, the last one first, made of it."""
    stand_in(node.outputs[0], old)
    for one in nodes:
        graph.remove(one, safe=True)
