"""Passes: the activation behind a native product, and the gate of a gated one, become part of it."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.match_gates import Finished, match_activation, match_gate
from poolgraph.graphs.native import PRODUCTS, Activation, Gate, native_nodes, number, set_numbers
from poolgraph.graphs.pattern import stand_in


def fuse_activations(model: ir.Model) -> int:
    """Fuse GELU, SiLU and ReLU into the product in front of them, whether of floats or of bytes.

    Given:   %x = poolgraph.cpu::FusedMatMul(...);  %y = Gelu(%x)
    Result:  %y = poolgraph.cpu::FusedMatMul(...) with activation
    """
    return sum(_fuse(model.graph, node, match_activation(node.outputs[0])) for node in _bare_products(model))


def fuse_gates(model: ir.Model) -> int:
    """Fuse the two halves of a gated product.

    Given:   %a, %b = Split(poolgraph.cpu::FusedMatMul(...));  %y = Mul(Gelu(%a), %b)
    Result:  %y = poolgraph.cpu::FusedMatMul(...) with activation and gate
    """
    return sum(_fuse(model.graph, node, match_gate(node.outputs[0])) for node in _bare_products(model))


def _bare_products(model: ir.Model) -> list[ir.Node]:
    """List the products whose columns are used as they are."""
    return [
        node
        for node in native_nodes(model, *PRODUCTS)
        if number(node, "activation") == Activation.NONE
        and number(node, "gate") == Gate.NONE
        and len(node.inputs) <= 1 + PRODUCTS[node.op_type].num_inputs
    ]


def _fuse(graph: ir.Graph, node: ir.Node, found: Finished | None) -> int:
    """Let ``node``'s answer stand for what was made of it."""
    if found is None:
        return 0
    set_numbers(node, found.attributes)
    stand_in(node.outputs[0], found.value)
    for one in found.nodes:
        graph.remove(one, safe=True)
    return 1
