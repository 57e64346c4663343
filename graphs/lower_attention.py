"""Semantic attention to what a target runs: standard operators, or ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.attention_node import AttentionNode, attention_nodes, read_attention
from poolgraph.graphs.attention_scores import name_part
from poolgraph.graphs.pattern import (
    CONTRIB_DOMAIN,
    add_constant,
    add_integers,
    dimensions,
    is_initializer,
    producer,
    replace_node,
    used_once,
)

LOWEST = float(np.finfo(np.float32).min)
"""The score of a key that a query does not see. Where it sees none, all scores are this one, and the weights equal."""


GROUP_QUERY_HEAD_MULTIPLE = 8
"""GroupQueryAttention refuses heads of another size ("head_size must be a multiple of 8", when it runs)."""


def lower_attention_to_standard(model: ir.Model) -> int:
    """Lower attention to standard operators.

    Given:   %y = poolgraph::Attention(%q, %k, %v, %mask, %bias, %cu_seqlens, %sinks)
    Result:  %s = MatMul(heads(%q) * scale, heads(%k) transposed);  %t = Tanh(%s / softcap) * softcap + %bias
             %y = merge(MatMul(Softmax(%t + (same text and mask and window ? 0 : lowest)), heads(%v)))
             with sinks, they are the last column of the scores, and their weights are cut off

    Query heads that share a key and value head are an axis of their own, along which MatMul broadcasts. Layers with
    the same window make the same mask from the same nodes, of which ``remove_dead_nodes`` leaves one.
    """
    nodes = attention_nodes(model)
    for node in nodes:
        lower_standard(model.graph, read_attention(node))
    return len(nodes)


def lower_attention_to_cpu(model: ir.Model) -> int:
    """Lower attention to ONNX Runtime's CPU kernels; batches are uniform, so a mask means keys that no query sees.

    1. Causal, with or without a left window, heads shared or not, their size a multiple of 8:
       %y = com.microsoft::GroupQueryAttention(%q, %k, %v, past_length, length), without a past
    2. Bidirectional, without window and shared heads, over a merged projection:
       %y = com.microsoft::Attention(%x, %W, %b[, %mask])
    3. The same without such a projection: %y = com.microsoft::MultiHeadAttention(%q, %k, %v[, %mask])
    4. Standard operators: a bias, packed texts, a softcap, sinks, a window to the right, shared heads that see
       everything, a mask on causal attention, other sizes.

    Measured on ONNX Runtime 1.31.1, one thread, batches of 1,024 tokens, texts of 8 to 512, as a share of the time of
    standard operators: GroupQueryAttention 0.75 to 1.05 (16 over 8 heads of 128, 14 over 2 of 64), with its softcap
    1.05 to 1.75; MultiHeadAttention over repeated heads 1.25 at 8 tokens, 0.95 at 512; with a mask 0.9 to 1.1.
    MultiHeadAttention with ``unidirectional`` takes 1.05 to 1.15 of GroupQueryAttention's time, Attention the same.
    Each gives a text the same bits in every batch.
    """
    nodes = attention_nodes(model)
    for node in nodes:
        attention = read_attention(node)  # only now: its inputs may come from the attention just lowered
        if _fits_group_query(attention):
            _lower_causal_cpu(model, attention)
        elif _fits_multi_head(attention):
            _lower_bidirectional_cpu(model, attention)
        elif _fits_one_query(attention):
            _lower_one_query(model.graph, attention)
        else:
            lower_standard(model.graph, attention)
    return len(nodes)


def _fits_one_query(attention: AttentionNode) -> bool:
    parts = (attention.bias, attention.mask, attention.cu_seqlens)
    is_one = (dimensions(attention.query) or ())[1:2] == (1,)
    return is_one and attention.group_size > 1 and not attention.has_window and all(part is None for part in parts)


def _fits_group_query(attention: AttentionNode) -> bool:
    plain = attention.is_plain and attention.cu_seqlens is None and attention.mask is None
    return plain and attention.is_causal and attention.head_dim % GROUP_QUERY_HEAD_MULTIPLE == 0


def _fits_multi_head(attention: AttentionNode) -> bool:
    plain = attention.is_plain and attention.cu_seqlens is None
    return plain and not attention.has_window and attention.group_size == 1


def lower_standard(
    graph: ir.Graph, attention: AttentionNode, *, unseen: float = LOWEST, is_captured: bool = False
) -> None:
    """Put standard operators in the place of one attention.

    Args:
        graph: Where it is.
        attention: What is lowered.
        unseen: Added to the score of a key that a query does not see.
        is_captured: Whether a CUDA graph is to hold them.
    """
    tape = Tape()
    heads = [attention.num_heads] if attention.group_size == 1 else [attention.num_kv_heads, attention.group_size]
    kv_heads = heads if attention.group_size == 1 else [attention.num_kv_heads, 1]
    rank = len(heads)
    rows_last = [0, *range(2, 2 + rank), 1, 2 + rank]  # (batch_size, heads, sequence_length, head_dim)
    rows_first = [0, *range(2, 2 + rank), 2 + rank, 1]

    def split(rows: ir.Value, counts: Sequence[int], perm: list[int]) -> ir.Value:
        shape = add_integers(graph, [0, 0, *counts, attention.head_dim])
        return tape.op("Transpose", [tape.op("Reshape", [rows, shape])], {"perm": perm})

    scale = _scalar(graph, "scale", attention.scale / (attention.softcap or 1.0))
    node = attention.node
    query = name_part(tape.op("Mul", [split(attention.query, heads, rows_last), scale]), node, "query")
    scores = name_part(tape.op("MatMul", [query, split(attention.key, kv_heads, rows_first)]), node, "scores")
    if attention.softcap:
        softcap = _scalar(graph, "softcap", attention.softcap)
        scores = name_part(tape.op("Mul", [tape.op("Tanh", [scores]), softcap]), node, "capped")
    if attention.bias is not None:
        scores = name_part(tape.op("Add", [scores, _grouped_bias(graph, tape, attention)]), node, "biased")
    visible = _visible(graph, tape, attention, rank)
    if visible is not None:
        hidden = [visible, _scalar(graph, "seen", 0.0), _scalar(graph, "unseen", unseen)]
        scores = name_part(tape.op("Add", [scores, tape.op("Where", hidden)]), node, "masked")
    weights = _soften(graph, tape, attention, scores, [*heads, 1, 1], is_captured=is_captured)
    rows = tape.op("MatMul", [weights, split(attention.value, kv_heads, rows_last)])
    rows = tape.op("Transpose", [rows], {"perm": [0, 1 + rank, *range(1, 1 + rank), 2 + rank]})
    result = tape.op("Reshape", [rows, add_integers(graph, [0, 0, attention.num_heads * attention.head_dim])])
    replace_node(graph, attention.node, tape.nodes, result)


def _lower_one_query(graph: ir.Graph, attention: AttentionNode) -> None:
    """Lower the attention of one query, to which pooling is pushed down, with the heads of a group as its rows.

    Were the heads an axis of their own, products of one row would broadcast over them; ONNX Runtime computes these for
    one text by another kernel than for several, and the bits would depend on the batch.
    """
    tape = Tape()
    kv_heads, size = attention.num_kv_heads, attention.head_dim
    scale = _scalar(graph, "scale", attention.scale / (attention.softcap or 1.0))
    query = tape.op("Reshape", [attention.query, add_integers(graph, [0, kv_heads, attention.group_size, size])])
    key, value = (
        tape.op("Transpose", [tape.op("Reshape", [rows, add_integers(graph, [0, 0, kv_heads, size])])], {"perm": perm})
        for rows, perm in ((attention.key, [0, 2, 3, 1]), (attention.value, [0, 2, 1, 3]))
    )
    scores = tape.op("MatMul", [tape.op("Mul", [query, scale]), key])
    if attention.softcap:
        scores = tape.op("Mul", [tape.op("Tanh", [scores]), _scalar(graph, "softcap", attention.softcap)])
    weights = _soften(graph, tape, attention, scores, [kv_heads, attention.group_size, 1])
    rows = tape.op("MatMul", [weights, value])
    result = tape.op("Reshape", [rows, add_integers(graph, [0, 1, attention.num_heads * size])])
    replace_node(graph, attention.node, tape.nodes, result)


def _soften(
    graph: ir.Graph,
    tape: Tape,
    attention: AttentionNode,
    scores: ir.Value,
    shape: Sequence[int],
    *,
    is_captured: bool = False,
) -> ir.Value:
    """Return the weights of keys; ``shape`` is that of the sinks beside the scores."""
    if attention.sinks is None:
        return tape.op("Softmax", [scores], {"axis": -1})
    sinks = tape.op("Reshape", [attention.sinks, add_integers(graph, shape)])
    if is_captured:
        return _sunk_softmax(graph, tape, attention.node, scores, sinks)
    return _joined_softmax(graph, tape, scores, sinks)


def _joined_softmax(graph: ir.Graph, tape: Tape, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """Return the weights of keys beside sinks: on the CPU, the bits of Exp would depend on where a row begins."""
    zero, one, last = (add_integers(graph, [number]) for number in (0, 1, -1))
    column = tape.op("Shape", [tape.op("Slice", [scores, zero, one, last])])
    joined = tape.op("Concat", [scores, tape.op("Expand", [sinks, column])], {"axis": -1})
    return tape.op("Slice", [tape.op("Softmax", [joined], {"axis": -1}), zero, last, last])


def _sunk_softmax(graph: ir.Graph, tape: Tape, node: ir.Node, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """Return the same without joining them, which no CUDA graph can hold."""
    last = add_integers(graph, [-1])
    of_keys = name_part(tape.op("ReduceMax", [scores, last], {"keepdims": 1}), node, "highest_key")
    highest = name_part(tape.op("Max", [of_keys, sinks]), node, "highest")
    powers = tape.op("Exp", [tape.op("Sub", [scores, highest])])
    total = tape.op("ReduceSum", [powers, last], {"keepdims": 1})
    of_sinks = tape.op("Exp", [tape.op("Sub", [sinks, highest])])
    return tape.op("Div", [powers, tape.op("Add", [total, of_sinks])])


def _grouped_bias(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value:
    """Return the bias with its axis of heads split as the scores' is."""
    assert attention.bias is not None
    if attention.group_size == 1:
        return attention.bias
    last = tape.op("Transpose", [attention.bias], {"perm": [2, 3, 0, 1]})
    shape = add_integers(graph, [0, 0, 0, attention.num_kv_heads, attention.group_size])
    return tape.op("Transpose", [tape.op("Reshape", [last, shape])], {"perm": [2, 3, 4, 0, 1]})


def _visible(graph: ir.Graph, tape: Tape, attention: AttentionNode, rank: int) -> ir.Value | None:
    """Return which key a query sees, broadcastable to the scores, or None where it sees all of them."""
    parts = [] if attention.cu_seqlens is None else [_same_text(graph, tape, attention)]
    if attention.mask is not None:
        axes = add_constant(graph, f"mask_axes_{rank}", np.arange(1, 2 + rank, dtype=np.int64))
        parts.append(tape.op("Unsqueeze", [attention.mask, axes]))
    if attention.has_window:
        parts.append(visible_in_window(graph, tape, attention))
    visible = parts[0] if parts else None
    for part in parts[1:]:
        visible = tape.op("And", [visible, part])
    return visible


def visible_in_window(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value:
    """Return whether a key is within the window of a query, (sequence_length, sequence_length)."""
    distance, parts = _distances(graph, tape, attention.query), []
    if attention.left_window >= 0:
        parts.append(tape.op("GreaterOrEqual", [distance, _index(graph, -attention.left_window)]))
    if attention.right_window >= 0:
        parts.append(tape.op("LessOrEqual", [distance, _index(graph, attention.right_window)]))
    return parts[0] if len(parts) == 1 else tape.op("And", parts)


def _distances(graph: ir.Graph, tape: Tape, query: ir.Value) -> ir.Value:
    """Return how far each key (column) is to the right of each query (row), (sequence_length, sequence_length)."""
    index = _indices(graph, tape, query)
    rows, columns = (tape.op("Unsqueeze", [index, add_integers(graph, [axis])]) for axis in (1, 0))
    return tape.op("Sub", [columns, rows])


def _same_text(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value:
    """Return whether query (row) and key (column) are of one text: blocks, or a row for the one query of each text."""
    of_keys = text_of_tokens(graph, tape, attention)
    of_queries = _indices(graph, tape, attention.query) if attention.has_one_query_a_text else of_keys
    texts = ((of_queries, 1), (of_keys, 0))
    rows, columns = (tape.op("Unsqueeze", [text, add_integers(graph, [axis])]) for text, axis in texts)
    return tape.op("Equal", [rows, columns])


def text_of_tokens(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value:
    """Return the number of the packed text that each token belongs to, (sequence_length,)."""
    assert attention.cu_seqlens is not None
    last = add_integers(graph, [1])
    far = add_integers(graph, [np.iinfo(np.int64).max])
    ends = tape.op("Unsqueeze", [tape.op("Slice", [attention.cu_seqlens, last, far]), add_integers(graph, [0])])
    index = _indices(graph, tape, attention.key)
    ended = tape.op("GreaterOrEqual", [tape.op("Unsqueeze", [index, last]), ends])
    return tape.op("ReduceSum", [tape.op("Cast", [ended], {"to": ir.DataType.INT64}), last], {"keepdims": 0})


def _indices(graph: ir.Graph, tape: Tape, rows: ir.Value) -> ir.Value:
    """Return 0, 1, ... of as many as there are ``rows``, (sequence_length,)."""
    length = tape.op("Squeeze", [_axis(graph, tape, rows, 1)])
    return tape.op("Range", [_index(graph, 0), length, _index(graph, 1)])


def _axis(graph: ir.Graph, tape: Tape, rows: ir.Value, axis: int) -> ir.Value:
    """Return the size of an axis of ``rows``, (1,), asked of a graph input where one has it: the same in each layer."""
    wanted = (dimensions(rows) or ())[:2]
    same = [value for value in graph.inputs if (dimensions(value) or ())[:2] == wanted]
    return tape.op("Shape", [same[0] if same else rows], {"start": axis, "end": axis + 1})


def _lower_causal_cpu(model: ir.Model, attention: AttentionNode) -> None:
    graph, tape = model.graph, Tape()
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    length = tape.op("Cast", [_axis(graph, tape, attention.query, 1)], {"to": ir.DataType.INT32})
    one = add_constant(graph, "one_int32", np.array(1, dtype=np.int32))
    past = tape.op("Expand", [tape.op("Sub", [length, one]), _axis(graph, tape, attention.query, 0)])
    attributes = {
        "num_heads": attention.num_heads,
        "kv_num_heads": attention.num_kv_heads,
        "scale": attention.scale,
        # The kernel counts the query itself.
        **({"local_window_size": attention.left_window + 1} if attention.left_window >= 0 else {}),
    }
    inputs = [attention.query, attention.key, attention.value, None, None, past, tape.op("Squeeze", [length])]
    result = tape.op("GroupQueryAttention", inputs, attributes, domain=CONTRIB_DOMAIN)
    replace_node(graph, attention.node, tape.nodes, result)


def _lower_bidirectional_cpu(model: ir.Model, attention: AttentionNode) -> None:
    graph, tape = model.graph, Tape()
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    attributes: dict[str, int | float] = {"num_heads": attention.num_heads, "scale": attention.scale}
    mask: list[ir.Value | None] = []
    if attention.mask is not None:
        mask = [tape.op("Cast", [attention.mask], {"to": ir.DataType.INT32})]
        attributes["mask_filter_value"] = LOWEST  # added to the score; the kernels' own, -10000, leaves some weight
    projection = _match_merged(attention)
    if projection is None:
        inputs = [attention.query, attention.key, attention.value, *([None, *mask] if mask else [])]
        result = tape.op("MultiHeadAttention", inputs, attributes, domain=CONTRIB_DOMAIN)
    else:
        result = tape.op("Attention", [*projection, *mask], attributes, domain=CONTRIB_DOMAIN)
    replace_node(graph, attention.node, tape.nodes, result)


def _match_merged(attention: AttentionNode) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return source, weight and bias of a merged projection that feeds this attention alone."""
    split = producer(attention.query, "Split")
    rows = (attention.query, attention.key, attention.value)
    if split is None or tuple(split.outputs) != rows or not all(used_once(value) for value in rows):
        return None
    add = producer(split.inputs[0], "Add")
    product = producer(add.inputs[0], "MatMul") if add is not None else None
    if add is None or product is None or len({dimensions(value) for value in rows}) > 1:
        return None
    source, weight, bias = product.inputs[0], product.inputs[1], add.inputs[1]
    if source is None or weight is None or bias is None or not (is_initializer(weight) and is_initializer(bias)):
        return None
    return source, weight, bias


def _index(graph: ir.Graph, number: int) -> ir.Value:
    return add_constant(graph, f"index_{number}".replace("-", "m"), np.array(number, dtype=np.int64))


def _scalar(graph: ir.Graph, name: str, number: float) -> ir.Value:
    return add_constant(graph, f"{name}_{number:.9g}", np.array(number, dtype=np.float32))
