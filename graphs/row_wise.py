"""Which operators work row by row: a row of their result needs the same row of their inputs, and no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from types import MappingProxyType

import onnx_ir as ir

from poolgraph.graphs.pattern import SEMANTIC_DOMAIN, SEQUENCE_AXIS, TOKENS_AXIS, dimensions, is_initializer

Axes = tuple[int | str | None, ...]

ROW_AXES = frozenset({SEQUENCE_AXIS, TOKENS_AXIS})
"""Names of the axis along which rows are; a layout has one of them: packed texts the second."""

ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater",
        "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max",
        "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus", "Softsign",
        "Sqrt", "Sub", "Tanh", "Where",
    }
)  # fmt: skip
"""Operators whose inputs broadcast to their one result."""

QUERY = 0
"""The input of the semantic attention of which a row of the result needs one row; it needs all keys and values."""


def row_inputs(node: ir.Node) -> tuple[int, ...] | None:
    """Return the inputs of which a row of the results needs one row; it needs the others whole, as weights are.

    None where the node mixes rows, or where that cannot be told from shapes. Rows are along the axis of ``ROW_AXES``,
    which the results have once.
    """
    check = _CHECKS.get((node.domain, node.op_type))
    axis = _common_axis(node)
    if check is None or axis is None or any(value is not None and shape_of(value) is None for value in node.inputs):
        return None
    carrying = tuple(index for index, value in enumerate(node.inputs) if row_axes(value))
    if not carrying or not check(node, axis, carrying):
        return None
    return (QUERY,) if node.domain == SEMANTIC_DOMAIN else carrying


def row_axis(value: ir.Value | None) -> int | None:
    """Return the axis of ``value`` along which its rows are, counted from the end; None unless there is exactly one."""
    axes = row_axes(value)
    return axes[0] if len(axes) == 1 else None


def row_axes(value: ir.Value | None) -> tuple[int, ...]:
    """Return the axes of ``value`` along which there is a number a token, counted from the end."""
    shape = (shape_of(value) if value is not None else None) or ()
    return tuple(index - len(shape) for index, axis in enumerate(shape) if axis in ROW_AXES)


def _common_axis(node: ir.Node) -> int | None:
    """Return the axis of the rows in all results, None where they differ or there is none."""
    axes = {row_axis(value) for value in node.outputs}
    return axes.pop() if len(axes) == 1 else None


def shape_of(value: ir.Value) -> Axes | None:
    """Return the axes of ``value``; the exporter leaves out those of values that it adds, which follow from inputs."""
    known = dimensions(value)
    node = value.producer()
    if known is not None or node is None or node.domain:
        return known
    shapes = [shape_of(it) if it is not None else () for it in node.inputs]
    if None in shapes:
        return None
    if node.op_type in ELEMENTWISE:
        return _broadcast([shape for shape in shapes if shape is not None])
    if node.op_type == "MatMul" and len(shapes[1] or ()) == 2:
        return (*(shapes[0] or ())[:-1], (shapes[1] or ())[-1])
    if node.op_type == "Slice":
        axes = _sliced_axes(node)
        rank = len(shapes[0] or ())
        return None if axes is None else tuple(None if i - rank in axes else a for i, a in enumerate(shapes[0] or ()))
    return None


def _broadcast(shapes: list[Axes]) -> Axes:
    columns = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return tuple(next((axis for axis in column if axis != 1), 1) for column in columns)[::-1]


_Check = Callable[[ir.Node, int, tuple[int, ...]], bool]
"""Takes a node, the axis of the rows in its results and the inputs that have such an axis."""


def _same_axis(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    return all(row_axis(node.inputs[index]) == axis for index in carrying)


def _is_elementwise(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether each input has the rows where the result has them, or one row for all."""
    shapes = [shape_of(value) or () for value in node.inputs if value is not None]
    aligned = [shape[axis] for shape in shapes if len(shape) >= -axis]
    return _same_axis(node, axis, carrying) and set(aligned) <= {1, *ROW_AXES}


def _is_row_product(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    return carrying == (0,) and axis < -1 and _same_axis(node, axis, carrying)


def _is_beside_rows(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether the attribute ``axis`` is another one than the rows'."""
    shape = shape_of(node.outputs[0]) or shape_of(node.inputs[0])  # type: ignore[arg-type]
    if shape is None or not _same_axis(node, axis, carrying):
        return False
    given = node.attributes["axis"].as_int() if "axis" in node.attributes else _DEFAULT_AXES[node.op_type]
    return given % len(shape) != axis % len(shape)


_DEFAULT_AXES = {"Concat": 0, "LogSoftmax": -1, "Softmax": -1, "Split": 0}


def _is_concat(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    return len(carrying) == len(node.inputs) and _is_beside_rows(node, axis, carrying)


def _is_norm(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether the norm is over axes behind the rows'."""
    shape = shape_of(node.inputs[0]) or ()  # type: ignore[arg-type]
    first = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    return carrying == (0,) and bool(shape) and first % len(shape) > axis % len(shape)


def _is_reduction(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether rows are kept: a reduced axis is gone, or 1."""
    return carrying == (0,)


def _is_reorder(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether axes change places, come or go by number, which leaves the one of the rows."""
    names_axes = node.op_type != "Squeeze" or len(node.inputs) > 1  # else it drops every axis of 1, one row's too
    return carrying == (0,) and row_axis(node.inputs[0]) is not None and names_axes


def _is_reshape(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether the reshape splits or joins what lies behind the rows, and would do so for one row."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])  # type: ignore[arg-type]
    target = _constant(node, 1)
    if carrying != (0,) or before is None or after is None or target is None:
        return False
    place = axis % len(after)
    allowzero = "allowzero" in node.attributes and node.attributes["allowzero"].as_int()
    return before[: place + 1] == after[: place + 1] and target[place] in (0, -1) and not allowzero


def _is_slice(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    axes = _sliced_axes(node)
    return carrying == (0,) and axes is not None and axis not in axes and _same_axis(node, axis, carrying)


def _is_attention(node: ir.Node, axis: int, carrying: tuple[int, ...]) -> bool:
    """Whether query, key and value have all rows; which queries may stand alone depends on windows."""
    return carrying[:3] == (0, 1, 2) and axis == -2 and _same_axis(node, axis, carrying[:3])


def _sliced_axes(node: ir.Node) -> list[int] | None:
    """Return the axes that a Slice cuts, counted from the end; None where they are computed."""
    shape, axes = shape_of(node.inputs[0]), _constant(node, 3)  # type: ignore[arg-type]
    return None if shape is None or axes is None else [axis % len(shape) - len(shape) for axis in axes]


def _constant(node: ir.Node, index: int) -> list[int] | None:
    """Return the numbers of an input that is stored, None for another."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or not is_initializer(value) or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


_CHECKS: Mapping[tuple[str, str], _Check] = MappingProxyType(
    {
        **{("", op_type): _is_elementwise for op_type in ELEMENTWISE},
        ("", "MatMul"): _is_row_product,
        ("", "LayerNormalization"): _is_norm,
        ("", "RMSNormalization"): _is_norm,
        ("", "Softmax"): _is_beside_rows,
        ("", "LogSoftmax"): _is_beside_rows,
        ("", "Split"): _is_beside_rows,
        ("", "Concat"): _is_concat,
        **{("", f"Reduce{name}"): _is_reduction for name in ("L2", "Max", "Mean", "Min", "Sum", "SumSquare")},
        ("", "Transpose"): _is_reorder,
        ("", "Squeeze"): _is_reorder,
        ("", "Unsqueeze"): _is_reorder,
        ("", "Reshape"): _is_reshape,
        ("", "Slice"): _is_slice,
        (SEMANTIC_DOMAIN, "Attention"): _is_attention,
    }
)
