"""Pooling pushed down: where one row of a text is pooled, what only that row needs is computed of it alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.attention_node import AttentionNode, read_attention
from poolgraph.graphs.families import family_outputs
from poolgraph.graphs.merge_projections import SEMANTIC_DOMAIN
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.pattern import add_constant, dimensions, is_initializer
from poolgraph.graphs.products import apart_weights, set_apart
from poolgraph.graphs.row_wise import row_inputs, sequence_axis

Position = Literal["first", "last"]
Need = Literal["first", "last", "whole"]
"""What of a value is needed."""

PICKED: dict[int, Position] = {0: "first", -1: "last"}
"""The row that a Gather with this index takes; of one row it takes the same."""

FAR = int(np.iinfo(np.int64).max)
_BOUNDS: dict[Position, tuple[int, int]] = {"first": (0, 1), "last": (-1, FAR)}


@dataclass(frozen=True, slots=True)
class RowNode:
    """A node that may be computed of one row: which, and the inputs of which it needs that row alone."""

    node: ir.Node
    position: Position
    inputs: tuple[int, ...]

    @property
    def is_attention(self) -> bool:
        """Whether it is a semantic attention."""
        return self.node.domain == SEMANTIC_DOMAIN


def push_pooling(model: ir.Model) -> int:
    """Compute of one row what only the pooled row needs, in a graph of uniform texts and of the sequence family alone.

    Given:   %q, %k, %v = products of %x;  %y = poolgraph::Attention(%q, %k, %v)
             %z = norm(feed_forward(%y @ %W + %residual));  %pooled = Gather(%z, 0 or -1, axis=1)
    Result:  the same with %q = product of %x[:, :1], with %residual[:, :1] and so %y and %z of one row;
             %k and %v as they were

    An operator takes part if it works row by row (``row_wise.py``) and if nothing needs its other rows. What enters it
    from elsewhere is sliced: the residual, the norm that keys and values read too, cosines and sines of rotary
    embeddings. The attention then has one query, which sees all keys that it is given: those outside of its window are
    sliced off, and ``causal`` and the windows are taken from the node, so that no lowering needs to know which row it
    is.
    """
    plan = plan_rows(model, model.graph.outputs)
    narrowed = {value for row in plan for value in row.node.outputs}
    slices: dict[tuple[ir.Value, Position], ir.Value] = {}
    for row in plan:
        if row.is_attention:
            _narrow_attention(model.graph, row)
        for index in row.inputs:
            value = row.node.inputs[index]
            assert value is not None
            if value in narrowed:
                continue
            if (value, row.position) not in slices:
                slices[value, row.position] = _row_of(model.graph, row.node, value, row.position)
            row.node.replace_input_with(index, slices[value, row.position])
    for value in narrowed:
        _set_one_row(value)
    return len(plan)


def note_row_products(model: ir.Model) -> int:
    """Set the products apart that ``push_pooling`` will compute of a row while others read all rows of their source.

    As a rule that is the last layer's query projection. Were its weights stored beside those of key and value, as one
    matrix, the graph that is pushed down and the others could not share them.
    """
    plan = plan_rows(model, family_outputs(model, "sequence"))
    narrowed = {value for row in plan for value in row.node.outputs}
    products = [row.node for row in plan if _weight(row.node) is not None]
    return sum(set_apart(node) for node in products if node.inputs[0] not in narrowed)


def note_products_as_in(other: ir.Model) -> Pass:
    """Return the pass that sets the products apart that are so in ``other``, the same model in another layout."""
    names = apart_weights(other)

    def note_row_products(model: ir.Model) -> int:
        weights = ((node, _weight(node)) for node in model.graph)
        return sum(set_apart(node) for node, weight in weights if weight is not None and weight.name in names)

    return note_row_products


def plan_rows(model: ir.Model, outputs: Iterable[ir.Value]) -> tuple[RowNode, ...]:
    """Decide which nodes are computed of one row where ``outputs`` are all that is wanted, in the graph's order.

    From the outputs backward, each value turns out to be needed whole, or of one row. Nothing is planned without a
    product or an attention among the nodes: the slices would cost more than they save.
    """
    needs: dict[ir.Value, Need] = dict.fromkeys(outputs, "whole")
    plan: list[RowNode] = []
    for node in reversed(model.graph):
        needed = {needs[value] for value in node.outputs if value in needs}
        if needed and _has_body(node):  # which may read any value, unseen
            return ()
        row = _plan_node(node, needed)
        plan += [] if row is None else [row]
        for value, need in _input_needs(node, row) if needed else ():
            needs[value] = need if needs.get(value, need) == need else "whole"
    useful = any(row.is_attention or _weight(row.node) is not None for row in plan)
    return tuple(reversed(plan)) if useful else ()


def _plan_node(node: ir.Node, needed: set[Need]) -> RowNode | None:
    if len(needed) != 1 or not _stands_alone(node):
        return None
    (position,) = needed
    inputs = None if position == "whole" else row_inputs(node)
    return None if position == "whole" or inputs is None else RowNode(node, position, inputs)


def _input_needs(node: ir.Node, row: RowNode | None) -> Iterator[tuple[ir.Value, Need]]:
    picked = _picked_row(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if row is not None and index in row.inputs:
            yield value, row.position
        else:
            yield value, picked if picked is not None and index == 0 else "whole"


def _picked_row(node: ir.Node) -> Position | None:
    """Return which row of its first input a Gather takes, None for what takes another or none."""
    if (node.domain, node.op_type) != ("", "Gather"):
        return None
    source, index = node.inputs
    tensor = index.const_value if index is not None and is_initializer(index) else None
    place = sequence_axis(source)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if tensor is None or tensor.size != 1 or place is None:
        return None
    rank = len(dimensions(source) or ())
    return PICKED.get(int(tensor.numpy().item())) if axis % rank == place % rank else None


def _weight(node: ir.Node) -> ir.Value | None:
    """Return the stored matrix of a product, None of another node."""
    is_product = (node.domain, node.op_type) == ("", "MatMul") and is_initializer(node.inputs[1])
    return node.inputs[1] if is_product else None


def _stands_alone(node: ir.Node) -> bool:
    """Whether a product's weights are its own, or it is the only one of its source.

    ALBERT's layers share their weights: were the last one's queries set apart, all layers' would have to be.
    """
    source, weight = node.inputs[0] if node.inputs else None, _weight(node)
    if source is None or weight is None or len(weight.uses()) == 1:
        return True
    return sum(_weight(use.node) is not None for use in source.uses()) == 1


def _has_body(node: ir.Node) -> bool:
    return any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())


def _narrow_attention(graph: ir.Graph, row: RowNode) -> None:
    """Leave the attention the keys that the one query sees, and no window; of a bias also the query's row."""
    attention = read_attention(row.node)
    bounds = _seen_keys(attention, row.position)
    if bounds is not None:
        for index, axis in ((1, 1), (2, 1), (3, 1), (4, 3)):
            _replace_by_slice(graph, row.node, index, axis, bounds)
    _replace_by_slice(graph, row.node, 4, 2, _BOUNDS[row.position])
    for name, number in (("causal", 0), ("left_window", -1), ("right_window", -1)):
        if name in row.node.attributes:
            row.node.attributes[name] = ir.AttrInt64(name, number)


def _seen_keys(attention: AttentionNode, position: Position) -> tuple[int, int] | None:
    """Return start and end of the keys that the first or the last query sees, None for all."""
    if position == "first":
        return None if attention.right_window < 0 else (0, attention.right_window + 1)
    return None if attention.left_window < 0 else (-attention.left_window - 1, FAR)


def _replace_by_slice(graph: ir.Graph, node: ir.Node, index: int, axis: int, bounds: tuple[int, int]) -> None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None:
        node.replace_input_with(index, _slice(graph, node, value, axis, bounds))


def _row_of(graph: ir.Graph, before: ir.Node, value: ir.Value, position: Position) -> ir.Value:
    axis = sequence_axis(value)
    assert axis is not None
    return _slice(graph, before, value, axis, _BOUNDS[position])


def _slice(graph: ir.Graph, before: ir.Node, value: ir.Value, axis: int, bounds: tuple[int, int]) -> ir.Value:
    """Return a range of ``value`` along an axis, made before a node."""
    numbers = [_numbers(graph, number) for number in (*bounds, axis)]
    node = ir.node("Slice", [value, *numbers])
    graph.insert_before(before, node)
    result = node.outputs[0]
    result.type = value.type
    sizes: list[int | str | None] = list(dimensions(value) or ())
    if sizes:
        sizes[axis] = 1 if bounds in _BOUNDS.values() else None
        result.shape = ir.Shape(sizes)
    return result


def _numbers(graph: ir.Graph, number: int) -> ir.Value:
    return add_constant(graph, f"numbers_{number}".replace("-", "m"), np.array([number], dtype=np.int64))


def _set_one_row(value: ir.Value) -> None:
    axis, sizes = sequence_axis(value), list(dimensions(value) or ())
    if axis is not None and sizes:
        sizes[axis] = 1
        value.shape = ir.Shape(sizes)
