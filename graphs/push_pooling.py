"""Pooling pushed down: where one row of a text is pooled, what only that row needs is computed of it alone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from poolgraph.graphs.attention_node import AttentionNode, read_attention
from poolgraph.graphs.families import family_outputs
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.pattern import SEMANTIC_DOMAIN, is_initializer, replace_node
from poolgraph.graphs.products import apart_weights, is_apart, set_apart
from poolgraph.graphs.row_choice import (
    BOUNDS,
    FAR,
    FIRST,
    RowChoice,
    is_last_of_packed,
    picked_rows,
    set_count,
    take_distances,
    take_range,
    take_rows,
)
from poolgraph.graphs.row_wise import row_inputs

Need = RowChoice | Literal["whole"]
"""What of a value is needed."""


@dataclass(frozen=True, slots=True)
class RowNode:
    """A node that may be computed of one row a text: which, and the inputs of which it needs that row alone."""

    node: ir.Node
    choice: RowChoice
    inputs: tuple[int, ...]

    @property
    def is_attention(self) -> bool:
        """Whether it is a semantic attention."""
        return self.node.domain == SEMANTIC_DOMAIN


def push_pooling(model: ir.Model) -> int:
    """Compute of one row a text what only the pooled row needs, in a graph of the sequence family alone.

    Given:   %q, %k, %v = products of %x;  %y = poolgraph::Attention(%q, %k, %v)
             %z = norm(feed_forward(%y @ %W + %residual));  %pooled = Gather(%z, 0 or -1, axis=1)
    Result:  the same with %q = product of %x[:, :1], with %residual[:, :1] and so %y and %z of one row;
             %k and %v as they were

    An operator takes part if it works row by row (``row_wise.py``) and if nothing needs its other rows. What enters it
    from elsewhere is sliced: the residual, the norm that keys and values read too, cosines and sines of rotary
    embeddings. The attention then has one query, which sees all keys that it is given: those outside of its window are
    sliced off, and ``causal`` and the windows are taken from the node, so that no lowering needs to know which row it
    is.

    Packed texts, whose rows are picked by a computed index, are treated alike:

    Given:   the same of %x (1, num_tokens, hidden_size);  %pooled = Gather(Squeeze(%z, 0), %index, axis=0)
    Result:  %q = product of Gather(%x, %index, axis=1), %residual gathered too, and so %y and %z of
             (1, batch_size, hidden_size);  %pooled = Squeeze(%z, 0)

    The attention, which keeps %cu_seqlens, then has one query a text. It is left whole where that query would not see
    all keys of its text, or where a bias would have to be cut.
    """
    graph = model.graph
    plan = plan_rows(model, graph.outputs)
    narrowed = {value: row.choice for row in plan for value in row.node.outputs}
    picks = [node for node in graph if _picks_all(node, narrowed)]
    taken: dict[tuple[ir.Value, RowChoice], ir.Value] = {}
    for row in plan:
        if row.is_attention:
            _narrow_attention(graph, row)
        for index in row.inputs:
            value = row.node.inputs[index]
            assert value is not None
            if value in narrowed:
                continue
            if (value, row.choice) not in taken:
                taken[value, row.choice] = take_rows(graph, row.node, value, row.choice)
            row.node.replace_input_with(index, taken[value, row.choice])
    for value, choice in narrowed.items():
        set_count(value, choice)
    _drop_picks(graph, picks)
    return len(plan)


def note_row_products(model: ir.Model) -> int:
    """Set the products apart that ``push_pooling`` will compute of a row while others read all rows of their source.

    As a rule that is the last layer's query projection. Were its weights stored beside those of key and value, as one
    matrix, the graph that is pushed down and the others could not share them. The uniform graph decides for all; in a
    packed one there is nothing to set apart.
    """
    rows = plan_rows(model, family_outputs(model, "sequence"))
    plan = [row for row in rows if not row.choice.is_computed]
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
    """Decide which nodes are computed of one row a text where ``outputs`` are all that is wanted, in the graph's order.

    Nothing is planned without a product or an attention among the nodes: the slices would cost more than they save.
    Packed graphs take over what products are computed together, so that they store the same weights.
    """
    whole: set[ir.Node] = set()
    plan = _plan_around(model, outputs, whole)
    while parted := _parted_products(plan):
        whole |= parted
        plan = _plan_around(model, outputs, whole)
    useful = any(row.is_attention or _weight(row.node) is not None for row in plan)
    return plan if useful else ()


def _plan_around(model: ir.Model, outputs: Iterable[ir.Value], whole: Container[ir.Node]) -> tuple[RowNode, ...]:
    """Plan with some nodes left whole: from the outputs backward, a value is needed whole, or of one row a text."""
    needs: dict[ir.Value, Need] = dict.fromkeys(outputs, "whole")
    plan: list[RowNode] = []
    for node in reversed(model.graph):
        needed = {needs[value] for value in node.outputs if value in needs}
        if needed and _has_body(node):  # which may read any value, unseen
            return ()
        row = None if node in whole else _plan_node(node, needed)
        plan += [] if row is None else [row]
        for value, need in _input_needs(node, row) if needed else ():
            needs[value] = need if needs.get(value, need) == need else "whole"
    return tuple(reversed(plan))


def _parted_products(plan: Sequence[RowNode]) -> set[ir.Node]:
    """Return the products of a packed graph that others of their source, with which they are joined, do not follow."""
    planned = {row.node: row.choice for row in plan}
    return {
        node
        for node, choice in planned.items()
        if choice.is_computed and any(planned.get(other) != choice for other in _joined_products(node))
    }


def _joined_products(node: ir.Node) -> list[ir.Node]:
    """Return the products that ``find_products`` puts into one group with this one; nothing for another node."""
    source = node.inputs[0] if node.inputs else None
    if source is None or _weight(node) is None or is_apart(node):
        return []
    return [use.node for use in source.uses() if _weight(use.node) is not None and not is_apart(use.node)]


def _plan_node(node: ir.Node, needed: set[Need]) -> RowNode | None:
    if len(needed) != 1 or not _stands_alone(node):
        return None
    (choice,) = needed
    inputs = None if choice == "whole" else row_inputs(node)
    if choice == "whole" or inputs is None:
        return None
    row = RowNode(node, choice, inputs)
    return None if row.is_attention and not _may_stand_alone(read_attention(node), choice) else row


def _may_stand_alone(attention: AttentionNode, choice: RowChoice) -> bool:
    """Whether keys can be left such that the one query sees all of them; of packed texts none can be cut off."""
    index, bounds = choice.index, attention.cu_seqlens
    if not isinstance(index, ir.Value) or bounds is None:
        return not choice.is_computed and bounds is None
    if attention.bias is not None or attention.left_window >= 0:
        return False
    return attention.right_window < 0 or is_last_of_packed(index, bounds)


def _input_needs(node: ir.Node, row: RowNode | None) -> Iterator[tuple[ir.Value, Need]]:
    picked = picked_rows(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if row is not None and index in row.inputs:
            yield value, row.choice
        else:
            yield value, picked if picked is not None and index == 0 else "whole"


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
    """Leave the attention no window, and where it has one the keys that the one query sees; of a bias also its row."""
    if row.choice in BOUNDS:
        _narrow_bias(graph, row)
    seen = _seen_keys(read_attention(row.node), row.choice)
    if seen is not None:
        for index, axis in ((1, 1), (2, 1), (3, 1), (4, 3)):
            _replace_by_range(graph, row.node, index, axis, seen)
    for name, number in (("causal", 0), ("left_window", -1), ("right_window", -1)):
        if name in row.node.attributes:
            row.node.attributes[name] = ir.AttrInt64(name, number)


def _narrow_bias(graph: ir.Graph, row: RowNode) -> None:
    """Leave of a bias the row of the one query; of one by distance nothing else is computed then."""
    by_distance = read_attention(row.node).by_distance
    if by_distance is None:
        _replace_by_range(graph, row.node, 4, 2, BOUNDS[row.choice])
    else:
        row.node.replace_input_with(4, take_distances(graph, row.node, by_distance, row.choice))


def _seen_keys(attention: AttentionNode, choice: RowChoice) -> tuple[int, int] | None:
    """Return start and end of the keys that the first or the last query sees, None for all, as of packed texts."""
    if choice.is_computed:
        return None
    if choice == FIRST:
        return None if attention.right_window < 0 else (0, attention.right_window + 1)
    return None if attention.left_window < 0 else (-attention.left_window - 1, FAR)


def _replace_by_range(graph: ir.Graph, node: ir.Node, index: int, axis: int, bounds: tuple[int, int]) -> None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None:
        node.replace_input_with(index, take_range(graph, node, value, axis, bounds))


def _picks_all(node: ir.Node, narrowed: Mapping[ir.Value, RowChoice]) -> bool:
    """Whether a Gather takes, by a computed index, the rows that will be all there are."""
    choice, source = picked_rows(node), node.inputs[0] if node.inputs else None
    return choice is not None and choice.is_computed and source is not None and narrowed.get(source) == choice


def _drop_picks(graph: ir.Graph, picks: Sequence[ir.Node]) -> None:
    """Drop the Gathers whose rows are all that is left, and put their indices in front of the new ones."""
    for node in picks:
        identity = ir.node("Identity", [node.inputs[0]])
        replace_node(graph, node, [identity], identity.outputs[0])
    if picks:
        graph.sort()
