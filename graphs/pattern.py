"""Small questions that passes ask of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

CONTRIB_DOMAIN = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

SEMANTIC_DOMAIN = "poolgraph"
"""Domain of the operators that a trace keeps whole, and that each target lowers in its own way."""

DISTANCE_BIAS = "DistanceBias"
"""Semantic operator of a bias by distance: ``distance_bias`` of ``export/semantic_distance.py``."""

BACKBONE_PREFIX = "backbone."
"""How the names of the backbone's weights begin, and of those that passes made of them."""

SEQUENCE_AXIS = "sequence_length"
"""Name of the axis along which a text's token rows are."""

TOKENS_AXIS = "num_tokens"
"""Name of the axis along which the token rows of packed texts are."""

ATTENDED = "attended_mask"
"""Input of graphs whose texts have tokens that none attends to. They may be anywhere in a text, and what they attend to
is an answer all the same, so that lengths cannot stand for the mask."""


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """Return the node that makes ``value`` if it is an ``op_type``, else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and (node.domain, node.op_type) == (domain, op_type) else None


def is_initializer(value: ir.Value | None) -> bool:
    """Whether ``value`` is a stored weight or constant."""
    return value is not None and value.is_initializer()


def used_once(value: ir.Value) -> bool:
    """Whether exactly one node reads ``value`` and the graph does not return it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def dimensions(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Return the axes of ``value``, integers and axis names; None when one is unknown."""
    if value is None or value.shape is None:
        return None
    axes = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return None if any(axis is None for axis in axes) else axes  # type: ignore[return-value]


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the initializer ``constant.name`` with the content of ``array``, made once a graph.

    Traced values are named after torch's operators, ``index_1`` among them, and have no dot.
    """
    name = f"constant.{name}"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_integers(graph: ir.Graph, numbers: Sequence[int]) -> ir.Value:
    """Return the constant ``numbers``, (len(numbers),) of int64: a shape, in which 0 keeps an axis, or axes."""
    name = "shape_" + "_".join(str(number).replace("-", "m") for number in numbers)
    return add_constant(graph, name, np.array(numbers, dtype=np.int64))


def scalar_of(value: ir.Value | None) -> float | None:
    """Return the number that a constant of one element holds, None of any other value."""
    array = value.const_value.numpy() if value is not None and value.const_value is not None else None
    return float(array.item()) if array is not None and array.size == 1 else None


def add_lazy_weight(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[], np.ndarray]
) -> ir.Value:
    """Return the initializer ``name`` whose content is computed whenever it is asked for, made once a graph."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(load()), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def stand_in(new: ir.Value, old: ir.Value) -> None:
    """Put ``new`` in the place of ``old`` wherever it is read or returned, under its name and with its shape."""
    new.shape, new.type = old.shape, old.type
    new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def replace_node(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node], value: ir.Value) -> None:
    """Put ``nodes`` in the place of ``node`` and ``value`` in the place of its only output, keeping name and shape."""
    old = node.outputs[0]
    value.shape, value.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(nodes), [old], [value])
