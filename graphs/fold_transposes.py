"""Transposes that undo each other go; transposed weights are stored transposed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import is_initializer, producer

TRANSPOSED = ".transposed"


def fold_transposes(model: ir.Model) -> int:
    """Drop a transpose of a transpose that restores the order of the axes.

    Given:   %y = Transpose(%x, perm=p);  %z = Transpose(%y, perm=q) with p[q[i]] = i
    Result:  %z = %x
    """
    rewrites = 0
    for node in list(model.graph):
        first = producer(node.inputs[0], "Transpose") if _is_transpose(node) and node.outputs[0].uses() else None
        if first is None or first.inputs[0] is None or not _is_transpose(first, may_be_output=True):
            continue
        inner, outer = _permutation(first), _permutation(node)
        if [inner[axis] for axis in outer] == sorted(inner):
            ir.convenience.replace_all_uses_with(node.outputs[0], first.inputs[0])
            rewrites += 1
    return rewrites


def store_transposed_weights(model: ir.Model) -> int:
    """Store weights in the order in which matrix products read them, [in, out].

    Given:   %t = Transpose(%weight, perm=[1, 0]);  %y = MatMul(%x, %t)
    Result:  %y = MatMul(%x, %weight.transposed)
    """
    graph = model.graph
    rewrites = 0
    for node in list(graph):
        weight = node.inputs[0] if _is_transpose(node) else None
        if weight is None or not is_initializer(weight) or len(_permutation(node)) > 2:
            continue
        keeps_order = _permutation(node) == sorted(_permutation(node))
        stored = weight if keeps_order else _transposed(graph, weight)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored)
        graph.remove(node, safe=True)
        rewrites += 1
    return rewrites


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    name = f"{weight.name}{TRANSPOSED}"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = weight.const_value
    assert tensor is not None
    shape = ir.Shape(list(reversed(tuple(tensor.shape.numpy()))))
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(tensor.numpy().T), name=name), dtype=tensor.dtype, shape=shape, name=name
    )
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def _is_transpose(node: ir.Node, *, may_be_output: bool = False) -> bool:
    """Whether ``node`` is a transpose that spells its permutation and may be taken out."""
    is_one = (node.domain, node.op_type) == ("", "Transpose") and "perm" in node.attributes
    return is_one and (may_be_output or not node.outputs[0].is_graph_output())


def _permutation(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())
