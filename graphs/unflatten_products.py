"""Products of flattened rows become products of (batch_size, sequence_length, features)."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.pattern import dimensions, is_initializer, producer, replace_node, used_once

PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
"""Attributes of a Gemm that is a product and a sum."""


def unflatten_products(model: ir.Model) -> int:
    """Take the reshapes off products with a bias, as torch's addmm leaves them in GPT-2.

    Given:   %y = Reshape(Gemm(Reshape(%x, [-1, in_features]), %W, %b), [batch_size, sequence_length, out_features])
    Result:  %y = Add(MatMul(%x, %W), %b)
    """
    graph = model.graph
    matched = [(node, source) for node in graph if (source := _match(node)) is not None]
    for node, source in matched:
        gemm = producer(node.inputs[0], "Gemm")
        assert gemm is not None
        product = ir.node("MatMul", [source, gemm.inputs[1]])
        total = ir.node("Add", [product.outputs[0], gemm.inputs[2]])
        product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        replace_node(graph, node, [product, total], total.outputs[0])
    return len(matched)


def _match(node: ir.Node) -> ir.Value | None:
    """Return the source of the product that ``node`` gives its axes back to."""
    if (node.domain, node.op_type) != ("", "Reshape"):
        return None
    gemm = producer(node.inputs[0], "Gemm")
    if gemm is None or not used_once(gemm.outputs[0]) or len(gemm.inputs) < 3 or not is_initializer(gemm.inputs[1]):
        return None
    if any(gemm.attributes[name].value != value for name, value in PLAIN.items() if name in gemm.attributes):
        return None
    flat = producer(gemm.inputs[0], "Reshape")
    source = flat.inputs[0] if flat is not None else None
    before, after = dimensions(source), dimensions(node.outputs[0])
    weight = dimensions(gemm.inputs[1]) or ()
    if before is None or after is None or len(before) != 3 or before[:2] != after[:2]:
        return None
    return source if (before[2], after[2]) == weight else None
