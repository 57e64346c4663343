"""Reshapes whose target is known up to one axis get a constant target; those that undo each other go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import add_constant, dimensions, is_initializer, producer


def fold_reshapes(model: ir.Model) -> int:
    """Replace computed reshape targets by constants, then drop reshapes back to a shape that there was.

    Given:   %t = Concat(Shape(%x)[0], Shape(%x)[1], 12, 32);  %y = Reshape(%x, %t)
    Result:  %y = Reshape(%x, [0, 0, 12, 32])

    Given:   %y = Reshape(%x, ...);  %z = Reshape(%y, ...) with the axes of %x
    Result:  %z = %x
    """
    graph = model.graph
    rewrites = 0
    for node in list(graph):
        if node.op_type == "Reshape" and node.domain == "":
            rewrites += _fix_target(graph, node)
            rewrites += _drop_round_trip(node)
    return rewrites


def _fix_target(graph: ir.Graph, node: ir.Node) -> int:
    source, target = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    if source is None or target is None or is_initializer(node.inputs[1]):
        return 0
    constant = _constant_target(source, target)
    if constant is None:
        return 0
    name = "shape_" + "_".join(str(size).replace("-", "m") for size in constant)
    node.replace_input_with(1, add_constant(graph, name, np.array(constant, dtype=np.int64)))
    node.attributes.pop("allowzero", None)
    return 1


def _constant_target(source: tuple[int | str, ...], target: tuple[int | str, ...]) -> list[int] | None:
    """Return Reshape's target: 0 copies the source's axis at the same place, -1 stands for one other unknown axis."""
    result = []
    for index, axis in enumerate(target):
        if isinstance(axis, int):
            result.append(axis)
        else:
            result.append(0 if index < len(source) and source[index] == axis else -1)
    return result if result.count(-1) <= 1 else None


def _drop_round_trip(node: ir.Node) -> int:
    first = producer(node.inputs[0], "Reshape")
    origin = first.inputs[0] if first is not None else node.inputs[0]
    axes = dimensions(origin)
    if origin is None or axes is None or axes != dimensions(node.outputs[0]) or node.outputs[0].is_graph_output():
        return 0
    if not node.outputs[0].uses():
        return 0
    ir.convenience.replace_all_uses_with(node.outputs[0], origin)
    return 1
