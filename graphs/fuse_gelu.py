"""Pass: activations to ONNX Runtime's own operators, a bias in front of them included."""

from __future__ import annotations

import math

import onnx_ir as ir

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.pattern import (
    CONTRIB_DOMAIN,
    dimensions,
    is_initializer,
    producer,
    replace_node,
    scalar_of,
    used_once,
)

CUBE = 0.044715
"""Of ``x ** 3`` in GELU by a hyperbolic tangent (arXiv 1606.08415)."""


def fuse_gelu(model: ir.Model) -> int:
    """Fuse activations with the bias of the product before them, and what the tracer spells out, into one operator.

    Given:   %y = Gelu(Add(%x, %b));                          Result: %y = com.microsoft::BiasGelu(%x, %b)
    Given:   %y = Gelu(Add(%x, %b)) {approximate: tanh};      Result: %y = com.microsoft::FastGelu(%x, %b)
             the same spelled out, as GPT-2 has it:
             %y = %x * 0.5 * (1 + Tanh(sqrt(2 / pi) * (%x + 0.044715 * %x ** 3)))
    Given:   %y = Mul(%x, Sigmoid(%x));                       Result: %y = com.microsoft::QuickGelu(%x) {alpha: 1}
    """
    rewrites = 0
    for node in list(model.graph):
        rows = _spelled_rows(node)
        if rows is not None:
            gelu = ir.node("Gelu", [rows], {"approximate": "tanh"})
            replace_node(model.graph, node, [gelu], gelu.outputs[0])
    remove_dead_nodes(model)  # what read the rows beside it
    for node in list(model.graph):
        fused = _gelu(node) or _silu(node)
        if fused is not None:
            model.graph.opset_imports[CONTRIB_DOMAIN] = 1
            replace_node(model.graph, node, [fused], fused.outputs[0])
            rewrites += 1
    return rewrites


def _gelu(node: ir.Node) -> ir.Node | None:
    if (node.domain, node.op_type) != ("", "Gelu"):
        return None
    is_tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
    add = producer(node.inputs[0], "Add")
    biased = add is not None and used_once(add.outputs[0]) and _is_bias(add.inputs[1], add.outputs[0])
    if not biased:
        return ir.node("FastGelu", [node.inputs[0]], domain=CONTRIB_DOMAIN) if is_tanh else None
    assert add is not None
    return ir.node("FastGelu" if is_tanh else "BiasGelu", list(add.inputs), domain=CONTRIB_DOMAIN)


def _is_bias(value: ir.Value | None, rows: ir.Value) -> bool:
    return is_initializer(value) and dimensions(value) == (dimensions(rows) or ())[-1:]


def _silu(node: ir.Node) -> ir.Node | None:
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for rows, gate in (node.inputs, reversed(node.inputs)):
        sigmoid = producer(gate, "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is rows and used_once(sigmoid.outputs[0]):
            return ir.node("QuickGelu", [rows], {"alpha": 1.0}, domain=CONTRIB_DOMAIN)
    return None


def _spelled_rows(node: ir.Node) -> ir.Value | None:
    """Return the ``x`` of which ``node`` is the last product of GELU by a hyperbolic tangent, spelled out."""
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for half, wave in (node.inputs, reversed(node.inputs)):
        rows = _beside(half, "Mul", 0.5)
        tanh = producer(_beside(wave, "Add", 1.0), "Tanh")
        total = producer(_beside(tanh.inputs[0], "Mul", math.sqrt(2 / math.pi)) if tanh is not None else None, "Add")
        cubes = [value for value in total.inputs if value is not rows] if total is not None else []
        power = producer(_beside(cubes[0], "Mul", CUBE), "Pow") if len(cubes) == 1 else None
        if rows is not None and power is not None and power.inputs[0] is rows and scalar_of(power.inputs[1]) == 3:
            return rows
    return None


def _beside(value: ir.Value | None, op_type: str, number: float) -> ir.Value | None:
    """Return what ``value`` is the sum or product of beside a number."""
    node = producer(value, op_type)
    pairs = [] if node is None else [tuple(node.inputs), tuple(reversed(node.inputs))]
    found = [rows for rows, other in pairs if math.isclose(scalar_of(other) or 0.0, number, rel_tol=1e-6)]
    return found[0] if found else None
