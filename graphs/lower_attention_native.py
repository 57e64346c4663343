"""Pass: semantic attention to this package's own operator, where it computes the kind at hand."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.attention_node import AttentionNode, attention_nodes, read_attention
from poolgraph.graphs.native import (
    ATTENTION,
    DISTANCE_TABLE,
    FLOAT_ATTENTION,
    NATIVE_DOMAIN,
    PACKED_BOUNDS,
    SCORE_BIAS,
    SINKS,
)
from poolgraph.graphs.pattern import (
    ATTENDED,
    DISTANCE_BIAS,
    SEMANTIC_DOMAIN,
    dimensions,
    producer,
    replace_node,
    used_once,
)

MOST_FEATURES: Final = 512
"""Size of the largest head that the operator takes."""
LEAST_SOFTCAP, MOST_SOFTCAP = 1e-6, 1e6
"""What the operator caps scores at, if it does."""


def lower_attention_to_native(model: ir.Model) -> int:
    """Lower attention without mask, bias, softcap and sinks to products of integers; others are left to later passes.

    Given:   %y = poolgraph::Attention(%q, %k, %v[, , , %cu_seqlens])
    Result:  %y = poolgraph.cpu::Attention(%q, %k, %v[, %cu_seqlens]), or of the one value that the three are split from
    """
    return sum(_lower(model.graph, read_attention(node), ATTENTION) for node in attention_nodes(model))


def lower_attention_to_native_float(model: ir.Model) -> int:
    """Do the same in float32, with a softcap, sinks, a bias by distance or, of texts that are not packed, any bias.

    Given:   %y = poolgraph::Attention(%q, %k, %v, , %bias, %cu_seqlens, %sinks)
    Result:  %y = poolgraph.cpu::FloatAttention(%q, %k, %v, %cu_seqlens, %bias, , %sinks), or, where the bias is
             poolgraph::DistanceBias(%by_distance), (%q, %k, %v, %cu_seqlens, , %by_distance, %sinks); of the one value
             that the three are split from, where there is one
    """
    return sum(_lower(model.graph, read_attention(node), FLOAT_ATTENTION) for node in attention_nodes(model))


def fits_native_packed(model: ir.Model) -> bool:
    """Whether the operators compute, of packed texts, all that mixes tokens in a semantic graph, padded or packed.

    Tokens that none attends to are hidden by a mask, which it does not take; states of Mamba's scans pass from token to
    token, whatever text they are of.
    """
    if any(value.name == ATTENDED for value in model.graph.inputs):
        return False
    mixing = [node for node in model.graph if node.domain == SEMANTIC_DOMAIN and node.op_type != DISTANCE_BIAS]
    nodes = [read_attention(node) for node in mixing if node.op_type == "Attention"]
    return 0 < len(nodes) == len(mixing) and all(_is_known(it) and _has_packed_bias(it) for it in nodes)


def _is_known(attention: AttentionNode) -> bool:
    is_capped = LEAST_SOFTCAP <= attention.softcap <= MOST_SOFTCAP
    return attention.head_dim <= MOST_FEATURES and attention.scale > 0 and (is_capped or not attention.softcap)


def _fits(attention: AttentionNode, operator: str) -> bool:
    if attention.mask is not None or not _is_known(attention):
        return False
    if operator == FLOAT_ATTENTION:
        return _has_packed_bias(attention) or (attention.cu_seqlens is None and _is_whole(attention))
    return attention.is_plain


def _has_packed_bias(attention: AttentionNode) -> bool:
    """Whether the operator adds the bias to the scores of packed texts, too, if there is one."""
    by_distance = attention.by_distance is not None and _is_whole(attention)
    return attention.bias is None or (by_distance and not attention.has_one_query_a_text)


def _is_whole(attention: AttentionNode) -> bool:
    """Whether the bias has a number for every head, query and key: the operator repeats it over texts alone."""
    shape = None if attention.bias is None else attention.bias.shape
    if shape is None:
        return True
    _, heads, *axes = shape
    own = [(dimensions(rows) or (None, None))[1] for rows in (attention.query, attention.key)]
    is_repeated = any(axis == 1 and axis != size for axis, size in zip(axes, own, strict=True))
    return not is_repeated and (heads == attention.num_heads or not isinstance(heads, int))


def _lower(graph: ir.Graph, attention: AttentionNode, operator: str) -> int:
    if not _fits(attention, operator):
        return 0
    attributes = {
        "num_heads": attention.num_heads,
        "kv_num_heads": attention.num_kv_heads,
        "head_size": attention.head_dim,
        "scale": attention.scale,
        "is_causal": int(attention.is_causal),
        "left_window": attention.left_window,
        "right_window": attention.right_window,
        **({"softcap": attention.softcap} if operator == FLOAT_ATTENTION else {}),
    }
    tape = Tape()
    rows: list[ir.Value | None] = [*_inputs(attention)]
    for index, value in _further_inputs(attention):
        if value is not None:
            rows += [None] * (index - len(rows)) + [value]
    result = tape.op(operator, rows, attributes, domain=NATIVE_DOMAIN)
    graph.opset_imports[NATIVE_DOMAIN] = 1
    replace_node(graph, attention.node, tape.nodes, result)
    return 1


def _further_inputs(attention: AttentionNode) -> tuple[tuple[int, ir.Value | None], ...]:
    """Return what the operator is given beside the rows, None for nothing, with its places, in order."""
    by_distance = attention.by_distance
    return (
        (PACKED_BOUNDS, attention.cu_seqlens),
        (SCORE_BIAS, attention.bias if by_distance is None else None),
        (DISTANCE_TABLE, by_distance),
        (SINKS, attention.sinks),
    )


def _inputs(attention: AttentionNode) -> list[ir.Value]:
    """Return what the three are split from, if nothing else reads them, else the three."""
    rows = [attention.query, attention.key, attention.value]
    split = producer(attention.query, "Split")
    if split is None or list(split.outputs) != rows or not all(used_once(value) for value in rows):
        return rows
    if "axis" not in split.attributes or split.attributes["axis"].as_int() not in {-1, 2}:
        return rows
    whole = split.inputs[0]
    assert whole is not None
    widths = [attention.num_heads, attention.num_kv_heads, attention.num_kv_heads]
    expected = [heads * attention.head_dim for heads in widths]
    return [whole] if [(dimensions(value) or (None,))[-1] for value in rows] == expected else rows
