"""Pass: semantic attention to ONNX Runtime's CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.attention_node import AttentionNode, attention_nodes, read_attention
from poolgraph.graphs.attention_scores import has_kept_scores
from poolgraph.graphs.lower_attention import LOWEST, lower_standard, visible_in_window
from poolgraph.graphs.lower_attention_blocks import UNSEEN, lower_packed_window
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.pattern import (
    ATTENDED,
    CONTRIB_DOMAIN,
    add_constant,
    add_integers,
    dimensions,
    producer,
    replace_node,
)

HEAD_MULTIPLE: Final = 8
"""The kernels take heads of a multiple of this size (``cudnn_flash_attention.cc``, Flash-Attention)."""

ROTARY_HEAD_MULTIPLE: Final = 16
"""GroupQueryAttention rotates heads of a multiple of this size."""

TOTAL_LENGTH: Final = "total_sequence_length"
OFFSET: Final = "token_offset"
"""Inputs that kernels need beside the traced ones: a scalar in CPU memory; an array that tells the longest text by its
shape."""

PADDED_AXES: Final = ("batch_size", "sequence_length")


def lower_attention_to_cuda(model: ir.Model) -> int:
    """Lower attention for texts padded on the right, or packed, to the kernels that are fast on a GPU.

    1. Packed, each query seeing its whole text:
       %y = com.microsoft::PackedMultiHeadAttention(%q, %k, %v, , %token_offset, %cu_seqlens), Flash-Attention
    2. Packed, with a window: MultiHeadAttention of blocks, ``lower_attention_blocks.py``
    3. Causal, with or without a left window, heads shared or not; or bidirectional with shared heads and no window:
       %y = com.microsoft::GroupQueryAttention(%q, %k, %v, , , lengths - 1, %total_sequence_length)
       with the rotary embedding, and the norm of each head, of query and key where they stand right in front
    4. Bidirectional: %y = com.microsoft::MultiHeadAttention(%q, %k, %v, , lengths, bias or window), which cuDNN
       computes; shared heads are repeated
    5. Standard operators: a softcap on bidirectional attention, sinks, heads of other sizes; shared heads are repeated

    Causal attention takes no mask: padding on the right is behind every token, and what it computes is dropped. Where
    some tokens are not attended to, attention is MultiHeadAttention with a bias that hides them.
    """
    return _lower(model, ())


def keep_scores(kept: Collection[str]) -> Pass:
    """Return the same pass for fp16 where some scores stay in float32, by their names.

    A key is hidden there by the least of all floats: beside such scores what hides one in 16 bits is small.
    """

    def lower_to_cuda(model: ir.Model) -> int:
        return _lower(model, kept)

    lower_to_cuda.__name__ = lower_attention_to_cuda.__name__
    return lower_to_cuda


def standard_attentions(model: ir.Model) -> list[str]:
    """List the attentions that no kernel takes, by the names of what they make."""
    nodes = [node for node in attention_nodes(model) if _form(read_attention(node)) is _lower_standard]
    return [str(node.outputs[0].name) for node in nodes]


def _lower(model: ir.Model, kept: Collection[str]) -> int:
    nodes = attention_nodes(model)
    for node in nodes:
        attention = read_attention(node)
        if has_kept_scores(node, kept):
            _lower_standard(model.graph, attention, unseen=LOWEST)
        else:
            _form(attention)(model.graph, attention)
    return len(nodes)


def _form(attention: AttentionNode) -> Callable[[ir.Graph, AttentionNode], None]:
    return next(lower for fits, lower in FORMS if fits(attention))


def fits_packed(model: ir.Model) -> bool:
    """Whether every attention of a semantic graph, padded or packed, has a form without padding."""
    if any(value.name == ATTENDED for value in model.graph.inputs):
        return False
    nodes = attention_nodes(model)
    return bool(nodes) and all(_has_packed_form(read_attention(node)) for node in nodes)


def _has_packed_form(attention: AttentionNode) -> bool:
    return (
        attention.is_plain
        and not attention.is_causal
        and (attention.left_window >= 0) == (attention.right_window >= 0)
        and attention.group_size == 1
        and attention.head_dim % HEAD_MULTIPLE == 0
    )


def _is_packed(attention: AttentionNode) -> bool:
    return attention.cu_seqlens is not None and attention.mask is None and _has_packed_form(attention)


def _is_group_query(attention: AttentionNode) -> bool:
    parts = (attention.cu_seqlens, attention.bias, attention.sinks)
    fits = all(part is None for part in parts) and attention.head_dim % HEAD_MULTIPLE == 0
    shared = attention.group_size > 1 and not attention.has_window and not attention.softcap
    return fits and not _hides_tokens(attention) and (attention.is_causal or shared)


def _is_multi_head(attention: AttentionNode) -> bool:
    fits = attention.cu_seqlens is None and attention.sinks is None and not attention.softcap
    return fits and (not attention.is_causal or _hides_tokens(attention))


def _hides_tokens(attention: AttentionNode) -> bool:
    """Whether the mask hides more than padding."""
    graph = attention.node.graph
    return isinstance(graph, ir.Graph) and any(value.name == ATTENDED for value in graph.inputs)


def _lower_packed(graph: ir.Graph, attention: AttentionNode) -> None:
    if attention.has_window:
        lower_packed_window(graph, attention)
        return
    tape = Tape()
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    assert attention.cu_seqlens is not None
    bounds = tape.op("Cast", [attention.cu_seqlens], {"to": ir.DataType.INT32})
    offset = _extra_input(graph, OFFSET, PADDED_AXES)
    rows = [_without_batch(graph, tape, value) for value in (attention.query, attention.key, attention.value)]
    attributes = {"num_heads": attention.num_heads, "scale": attention.scale}
    packed = tape.op("PackedMultiHeadAttention", [*rows, None, offset, bounds], attributes, domain=CONTRIB_DOMAIN)
    axis = add_constant(graph, "axes_0", np.array([0], dtype=np.int64))
    result = tape.op("Unsqueeze", [packed, axis])
    replace_node(graph, attention.node, tape.nodes, result)


def _without_batch(graph: ir.Graph, tape: Tape, rows: ir.Value) -> ir.Value:
    """Return rows (1, num_tokens, size) as (num_tokens, size)."""
    return tape.op("Squeeze", [rows, add_constant(graph, "axes_0", np.array([0], dtype=np.int64))])


def _lower_group_query(graph: ir.Graph, attention: AttentionNode) -> None:
    tape = Tape()
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    one = add_constant(graph, "one_int32", np.array(1, dtype=np.int32))
    last = tape.op("Sub", [_lengths(graph, tape, attention), one])
    total = _extra_input(graph, TOTAL_LENGTH, ())
    attributes: dict[str, int | float] = {
        "num_heads": attention.num_heads,
        "kv_num_heads": attention.num_kv_heads,
        "scale": attention.scale,
    }
    if attention.softcap:
        attributes["softcap"] = attention.softcap
    if not attention.is_causal:
        attributes["causal"] = 0
    if attention.left_window >= 0:
        attributes["local_window_size"] = attention.left_window + 1  # the kernel counts the query itself
    query, key, extra = _take_rotary(attention, attributes)
    inputs = [query, key, attention.value, None, None, last, total, *extra]
    # The kernel writes keys and values of all rows into present_key and present_value, read or not.
    outputs = tape.op_multi_out("GroupQueryAttention", inputs, attributes, domain=CONTRIB_DOMAIN, num_outputs=3)
    replace_node(graph, attention.node, tape.nodes, outputs[0])


def _take_rotary(
    attention: AttentionNode, attributes: dict[str, int | float]
) -> tuple[ir.Value, ir.Value, list[ir.Value | None]]:
    """Take the rotary embedding, and the norm of heads before it, of query and key into the kernel.

    Returns:
        Query, key, and the inputs from cos_cache on.
    """
    rotations = [producer(value, "RotaryEmbedding", CONTRIB_DOMAIN) for value in (attention.query, attention.key)]
    plain: tuple[ir.Value, ir.Value, list[ir.Value | None]] = (attention.query, attention.key, [])
    if attention.head_dim % ROTARY_HEAD_MULTIPLE:
        return plain
    if any(node is None or not _counts_from_zero(node.inputs[1]) for node in rotations):
        return plain
    query, key = (node for node in rotations if node is not None)
    if tuple(query.inputs[1:]) != tuple(key.inputs[1:]):
        return plain
    attributes["do_rotary"] = 1
    tables: list[ir.Value | None] = list(query.inputs[2:4])
    norms = [_head_norm(node.inputs[0]) for node in (query, key)]
    if all(norm is not None for norm in norms) and len({_epsilon(norm) for norm in norms}) == 1:
        attributes["qk_norm_epsilon"] = _epsilon(norms[0])
        sources = [_flat_source(norm) for norm in norms]
        if all(source is not None for source in sources):
            weights = [norm.inputs[1] for norm in norms if norm is not None]
            return sources[0], sources[1], [*tables, *[None] * 5, *weights]  # type: ignore[return-value]
        del attributes["qk_norm_epsilon"]
    assert query.inputs[0] is not None
    assert key.inputs[0] is not None
    return query.inputs[0], key.inputs[0], tables


def _counts_from_zero(positions: ir.Value | None) -> bool:
    """Whether positions are the mask counted, which is 0, 1, 2 ... where padding is on the right."""
    clip = producer(positions, "Clip")
    less = producer(clip.inputs[0] if clip is not None else None, "Sub")
    count = producer(less.inputs[0] if less is not None else None, "CumSum")
    return count is not None and count.inputs[0] is not None and count.inputs[0].is_graph_input()


def _head_norm(value: ir.Value | None) -> ir.Node | None:
    """Return the norm of each head in front of a flattening."""
    flat = producer(value, "Reshape")
    return producer(flat.inputs[0] if flat is not None else None, "SimplifiedLayerNormalization")


def _flat_source(norm: ir.Node | None) -> ir.Value | None:
    """Return the rows (batch_size, sequence_length, hidden_size) whose heads are normalized."""
    heads = producer(norm.inputs[0] if norm is not None else None, "Reshape")
    rows = heads.inputs[0] if heads is not None else None
    return rows if len(dimensions(rows) or ()) == 3 else None


def _epsilon(norm: ir.Node | None) -> float:
    return norm.attributes["epsilon"].as_float() if norm is not None else 0.0


def _lower_multi_head(graph: ir.Graph, attention: AttentionNode) -> None:
    tape = Tape()
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    key, value = (_repeat_heads(graph, tape, attention, rows) for rows in (attention.key, attention.value))
    lengths = None if _hides_tokens(attention) else _lengths(graph, tape, attention)
    inputs = [attention.query, key, value, None, lengths, _bias(graph, tape, attention)]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"num_heads": attention.num_heads, "scale": attention.scale}
    result = tape.op("MultiHeadAttention", inputs, attributes, domain=CONTRIB_DOMAIN)
    replace_node(graph, attention.node, tape.nodes, result)


def _repeat_heads(graph: ir.Graph, tape: Tape, attention: AttentionNode, rows: ir.Value) -> ir.Value:
    """Give each query head its own copy of the key or value head that it shares."""
    if attention.group_size == 1:
        return rows

    heads, group, size = attention.num_kv_heads, attention.group_size, attention.head_dim
    split = tape.op("Reshape", [rows, add_integers(graph, [0, 0, heads, 1, size])])
    repeated = tape.op("Expand", [split, add_integers(graph, [1, 1, heads, group, size])])
    return tape.op("Reshape", [repeated, add_integers(graph, [0, 0, heads * group * size])])


def _bias(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value | None:
    """Return what is added to the scores, (1 or batch_size, 1 or num_heads, sequence_length, sequence_length)."""
    seen = _seen(graph, tape, attention)
    if seen is None:
        return attention.bias
    hidden = [add_constant(graph, name, np.array(number, dtype=np.float32)) for name, number in _SEEN]
    added = tape.op("Where", [seen, *hidden])
    return added if attention.bias is None else tape.op("Add", [attention.bias, added])


def _seen(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value | None:
    """Return which key a query sees by what the kernel is not told, in the shape of ``_bias``; None for all."""

    def axes(*numbers: int) -> ir.Value:
        return add_constant(graph, f"axes_{'_'.join(map(str, numbers))}", np.array(numbers, dtype=np.int64))

    window = None
    if attention.has_window:
        window = tape.op("Unsqueeze", [visible_in_window(graph, tape, attention), axes(0, 1)])
    if not _hides_tokens(attention):
        return window
    keys = tape.op("Unsqueeze", [attention.mask, axes(1, 2)])
    if window is not None:
        return tape.op("And", [keys, window])
    # The kernel repeats a bias for heads and texts, not for queries.
    one = add_integers(graph, [1])
    length = tape.op("Shape", [next(it for it in graph.inputs if it.name == ATTENDED)], {"start": 1, "end": 2})
    return tape.op("Expand", [keys, tape.op("Concat", [one, one, length, one], {"axis": 0})])


_SEEN: Final = (("seen_0", 0.0), (f"unseen_{UNSEEN:.0f}".replace("-", "m"), UNSEEN))


def _lengths(graph: ir.Graph, tape: Tape, attention: AttentionNode) -> ir.Value:
    """Return the number of keys of each text, (batch_size,) of int32: padding is on the right."""
    assert attention.mask is not None
    axis = add_constant(graph, "axes_1", np.array([1], dtype=np.int64))
    counted = tape.op("Cast", [attention.mask], {"to": ir.DataType.INT32})
    return tape.op("ReduceSum", [counted, axis], {"keepdims": 0})


def _extra_input(graph: ir.Graph, name: str, axes: tuple[str, ...]) -> ir.Value:
    """Return the int32 input ``name``, added once a graph."""
    found = [value for value in graph.inputs if value.name == name]
    if found:
        return found[0]
    value = ir.Value(name=name, shape=ir.Shape(axes), type=ir.TensorType(ir.DataType.INT32))
    graph.inputs.append(value)
    return value


def _lower_standard(graph: ir.Graph, attention: AttentionNode, *, unseen: float = UNSEEN) -> None:
    """Lower to standard operators, without products that broadcast over heads: a CUDA graph cannot hold them."""
    tape = Tape()
    key, value = (_repeat_heads(graph, tape, attention, rows) for rows in (attention.key, attention.value))
    graph.insert_before(attention.node, tape.nodes)
    own = replace(attention, key=key, value=value, num_kv_heads=attention.num_heads)
    lower_standard(graph, own, unseen=unseen, is_captured=True)


FORMS: Final[tuple[tuple[Callable[[AttentionNode], bool], Callable[[ir.Graph, AttentionNode], None]], ...]] = (
    (_is_packed, _lower_packed),
    (_is_group_query, _lower_group_query),
    (_is_multi_head, _lower_multi_head),
    (lambda _: True, _lower_standard),
)
"""The forms, the fastest that fits first."""
