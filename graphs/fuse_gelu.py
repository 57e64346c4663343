"""Pass: activations to ONNX Runtime's own operators, a bias in front of them included."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.pattern import CONTRIB_DOMAIN, dimensions, is_initializer, producer, replace_node, used_once


def fuse_gelu(model: ir.Model) -> int:
    """Fuse activations with the bias of the product before them; SiLU, which the tracer spells out, into one operator.

    Given:   %y = Gelu(Add(%x, %b));                          Result: %y = com.microsoft::BiasGelu(%x, %b)
    Given:   %y = Gelu(Add(%x, %b)) {approximate: tanh};      Result: %y = com.microsoft::FastGelu(%x, %b)
    Given:   %y = Mul(%x, Sigmoid(%x));                       Result: %y = com.microsoft::QuickGelu(%x) {alpha: 1}
    """
    rewrites = 0
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
