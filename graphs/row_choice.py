"""The row of each text that pooling takes, and taking it of a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.pattern import (
    SEQUENCE_AXIS,
    add_constant,
    add_integers,
    dimensions,
    is_initializer,
    producer,
    scalar_of,
)
from poolgraph.graphs.row_wise import row_axis, shape_of

FAR = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class RowChoice:
    """One row of each text.

    Attributes:
        index: Its place along ``sequence_length``, 0 or -1; of packed texts the rows' computed places along
            ``num_tokens``, (batch_size,).
        count: What becomes of that axis: 1, or the name of the index's own.
    """

    index: int | ir.Value
    count: int | str

    @property
    def is_computed(self) -> bool:
        """Whether the places depend on the texts: a packed graph."""
        return isinstance(self.index, ir.Value)


FIRST, LAST = RowChoice(0, 1), RowChoice(-1, 1)

BOUNDS = {FIRST: (0, 1), LAST: (-1, FAR)}
"""Start and end of the row along the axis, where it is the same for all texts."""


def picked_rows(node: ir.Node) -> RowChoice | None:
    """Return which rows of its first input a Gather takes, None for what takes others or none.

    Of uniform texts that is the first or the last; of one row it takes the same. Of packed texts it may be any, of
    rows that have features: lists of a number a token are not worth it.
    """
    if (node.domain, node.op_type) != ("", "Gather"):
        return None
    source, index = node.inputs
    place, sizes = row_axis(source), shape_of(source) if source is not None else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if index is None or place is None or not sizes or axis % len(sizes) != place % len(sizes):
        return None
    if sizes[place] == SEQUENCE_AXIS:
        number = scalar_of(index) if is_initializer(index) else None
        return next((choice for choice in (FIRST, LAST) if choice.index == number), None)
    result = dimensions(node.outputs[0]) or ()
    return RowChoice(index, result[place]) if len(result) == len(sizes) > 1 else None


def is_last_of_packed(index: ir.Value, cu_seqlens: ir.Value) -> bool:
    """Whether an index is ``cu_seqlens[1:] - 1``: each text's last row."""
    node = index.producer()
    while node is not None and node.op_type in ("Cast", "Reshape") and node.inputs[0] is not None:
        index, node = node.inputs[0], node.inputs[0].producer()
    difference = producer(index, "Sub")
    ends = producer(difference.inputs[0], "Slice") if difference is not None else None
    if difference is None or ends is None or ends.inputs[0] is not cu_seqlens:
        return False
    start, stop, _axis, step = (scalar_of(value) for value in (*ends.inputs[1:], None, None)[:4])
    return (start, stop, step, scalar_of(difference.inputs[1])) == (1, float(FAR), 1, 1)


def take_rows(graph: ir.Graph, before: ir.Node, value: ir.Value, choice: RowChoice) -> ir.Value:
    """Return the chosen rows of ``value``, taken before a node; a computed index may stand behind that."""
    axis = row_axis(value)
    assert axis is not None
    if isinstance(choice.index, int):
        return take_range(graph, before, value, axis, BOUNDS[choice])
    node = ir.node("Gather", [value, choice.index], {"axis": axis})
    return _insert(graph, before, node, axis, choice.count)


def take_range(graph: ir.Graph, before: ir.Node, value: ir.Value, axis: int, bounds: tuple[int, int]) -> ir.Value:
    """Return a range of ``value`` along an axis, taken before a node."""
    numbers = [_numbers(graph, number) for number in (*bounds, axis)]
    return _insert(graph, before, ir.node("Slice", [value, *numbers]), axis, 1 if bounds in BOUNDS.values() else None)


def take_distances(graph: ir.Graph, before: ir.Node, by_distance: ir.Value, choice: RowChoice) -> ir.Value:
    """Return the bias of the first or the last query, (1, num_heads, 1, sequence_length), taken before a node.

    Keys of the first are 0 and more to its right, those of the last 0 and more to its left: one half of the distances.
    """
    tape = Tape()
    columns = tape.op("Shape", [by_distance], {"start": 1, "end": 2})
    last = tape.op("Div", [columns, _numbers(graph, 2)])
    start, end = (last, _numbers(graph, FAR))
    if choice == LAST:
        start, end = _numbers(graph, 0), tape.op("Add", [last, _numbers(graph, 1)])
    half = tape.op("Slice", [by_distance, start, end, _numbers(graph, 1)])
    row = tape.op("Unsqueeze", [half, add_integers(graph, [0, 2])])
    row.type = by_distance.type
    row.shape = ir.Shape([1, (dimensions(by_distance) or (None,))[0], 1, SEQUENCE_AXIS])
    graph.insert_before(before, tape.nodes)
    return row


def set_count(value: ir.Value, choice: RowChoice) -> None:
    """Note that of the rows of ``value`` the chosen ones are left."""
    axis, sizes = row_axis(value), list(dimensions(value) or ())
    if axis is not None and sizes:
        sizes[axis] = choice.count
        value.shape = ir.Shape(sizes)


def _insert(graph: ir.Graph, before: ir.Node, node: ir.Node, axis: int, count: int | str | None) -> ir.Value:
    value, result = node.inputs[0], node.outputs[0]
    assert value is not None
    graph.insert_before(before, node)
    result.type = value.type
    sizes = list(shape_of(value) or ())
    if sizes:
        sizes[axis] = count
        result.shape = ir.Shape(sizes)
    return result


def _numbers(graph: ir.Graph, number: int) -> ir.Value:
    return add_constant(graph, f"numbers_{number}".replace("-", "m"), np.array([number], dtype=np.int64))
