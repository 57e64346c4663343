"""Transposes that undo each other go; transposed weights are stored transposed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import dimensions, is_initializer, producer

TRANSPOSED, RESHAPED = ".transposed", ".reshaped"


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
    """Store weights in the order and shape in which matrix products read them, [in, out].

    1. Given:   %t = Transpose(%weight, perm=[1, 0]);  %y = MatMul(%x, %t)
       Result:  %y = MatMul(%x, %weight.transposed)
    2. Given:   %r = Reshape(%weight, [-1, 8]);  %y = MatMul(%x, %r)
       Result:  %y = MatMul(%x, %weight.reshaped_-1_8)
    """
    graph = model.graph
    rewrites = 0
    for node in list(graph):
        stored = _stored_view(graph, node)
        if stored is None:
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], stored)
        graph.remove(node, safe=True)
        rewrites += 1
    return rewrites


def _stored_view(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """Return the weight that holds what ``node`` makes of one, None where it makes something else."""
    weight = node.inputs[0] if node.inputs else None
    if weight is None or not is_initializer(weight) or node.outputs[0].is_graph_output() or node.domain:
        return None
    if node.op_type == "Identity":
        return weight
    if _is_transpose(node):
        order = _permutation(node)
        suffix = TRANSPOSED if order == [1, 0] else f"{TRANSPOSED}_{'_'.join(map(str, order))}"
        return weight if order == sorted(order) else _stored(graph, weight, suffix, lambda it: it.transpose(order))
    shape = _target_shape(node) if node.op_type == "Reshape" and len(dimensions(weight) or ()) > 1 else []
    if not shape or 0 in shape:  # which may keep an axis
        return None
    return _stored(graph, weight, f"{RESHAPED}_{'_'.join(map(str, shape))}", lambda it: it.reshape(shape))


def _target_shape(node: ir.Node) -> list[int]:
    """Return the sizes that a Reshape asks for: a constant, or what the tracer computes of constants and notes."""
    target = node.inputs[1]
    sizes = None if target is None else ir.convenience.get_const_tensor(target)
    if sizes is not None:
        return [int(size) for size in sizes.numpy()]
    noted = dimensions(node.outputs[0]) or ()
    return [size for size in noted if isinstance(size, int)] if all(isinstance(size, int) for size in noted) else []


def _stored(graph: ir.Graph, weight: ir.Value, suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> ir.Value:
    """Return the initializer of a changed weight, made once a graph; it is read only when it is written."""
    name = f"{weight.name}{suffix}"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = weight.const_value
    assert tensor is not None
    shape = ir.Shape(change(np.broadcast_to(np.float32(0), tuple(tensor.shape.numpy()))).shape)
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(change(tensor.numpy())), name=name),
        dtype=tensor.dtype,
        shape=shape,
        name=name,
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
