"""Passes: the residual added to a native product's rows, and the norm of the sum, become part of the operator."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.native import RESIDUALS, Norm, native_nodes, number, set_numbers
from poolgraph.graphs.pattern import dimensions, is_initializer, stand_in, used_once

NORMS = {"LayerNormalization": Norm.LAYER, "SimplifiedLayerNormalization": Norm.ROOT_MEAN_SQUARE}


def fuse_residuals(model: ir.Model) -> int:
    """Fuse the addition of rows of the same shape.

    Given:   %y = poolgraph.cpu::FusedMatMul(...);  %s = Add(%y, %residual)
    Result:  %s = poolgraph.cpu::FusedMatMul(..., %residual)
    """
    return sum(_fuse_residual(model.graph, node) for node in native_nodes(model, *RESIDUALS))


def fuse_norms(model: ir.Model) -> int:
    """Fuse the norm of an operator's rows; the rows themselves become its second output where others read them.

    Given:   %s = poolgraph.cpu::FusedMatMul(..., %residual);  %y = LayerNormalization(%s, %weight, %bias)
    Result:  %y, %s = poolgraph.cpu::FusedMatMul(..., %residual, %weight, %bias)
    """
    return sum(_fuse_norm(model.graph, node) for node in native_nodes(model, *RESIDUALS))


def _fuse_residual(graph: ir.Graph, node: ir.Node) -> int:
    index, answer = RESIDUALS[node.op_type], node.outputs[0]
    if len(node.inputs) > index or number(node, "norm") != Norm.NONE or not used_once(answer):
        return 0
    (use,) = answer.uses()
    add = use.node
    others = [value for value in add.inputs if value is not answer]
    if (add.domain, add.op_type) != ("", "Add") or len(others) != 1:
        return 0
    (residual,) = others
    if residual is None or dimensions(residual) is None or dimensions(residual) != dimensions(answer):
        return 0
    _move(graph, node, add)
    _set_inputs(node, {index: residual})
    return _take_place(graph, node, add)


def _fuse_norm(graph: ir.Graph, node: ir.Node) -> int:
    answer = node.outputs[0]
    if number(node, "norm") != Norm.NONE:
        return 0
    norms = [use.node for use in answer.uses() if use.node.domain == "" and use.node.op_type in NORMS]
    if len(norms) != 1 or not _is_of_rows(norms[0], answer):
        return 0
    norm = norms[0]
    index = RESIDUALS[node.op_type]
    shared = not used_once(answer)
    _set_inputs(node, {index + 1: norm.inputs[1], index + 2: norm.inputs[2] if len(norm.inputs) > 2 else None})
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    set_numbers(node, {"norm": int(NORMS[norm.op_type]), "epsilon": epsilon})
    if shared:
        node.resize_outputs(2)
        stand_in(node.outputs[1], answer)
        norm.replace_input_with(0, answer)
    return _take_place(graph, node, norm)


def _is_of_rows(norm: ir.Node, rows: ir.Value) -> bool:
    rank = len(dimensions(rows) or ())
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    width = (dimensions(rows) or (None,))[-1]
    weights = [value for value in norm.inputs[1:] if value is not None]
    return (
        norm.inputs[0] is rows
        and axis in {-1, rank - 1}
        and all(is_initializer(value) and dimensions(value) == (width,) for value in weights)
        and not any(value.uses() or value.is_graph_output() for value in norm.outputs[1:])
    )


def _set_inputs(node: ir.Node, inputs: dict[int, ir.Value | None]) -> None:
    size = max(max(inputs) + 1, len(node.inputs))
    if size > len(node.inputs):
        node.resize_inputs(size)
    for index, value in inputs.items():
        node.replace_input_with(index, value)


def _move(graph: ir.Graph, node: ir.Node, before: ir.Node) -> None:
    """Move a node to where all inputs of ``before`` are there."""
    graph.remove(node)
    graph.insert_before(before, node)


def _take_place(graph: ir.Graph, node: ir.Node, old: ir.Node) -> int:
    stand_in(node.outputs[0], old.outputs[0])
    graph.remove(old, safe=True)
    return 1
