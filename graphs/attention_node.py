"""The semantic attention node of a graph, read: its inputs by name and its attributes as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from poolgraph.graphs.pattern import DISTANCE_BIAS, SEMANTIC_DOMAIN, dimensions, producer


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNode:
    """One ``poolgraph::Attention``; ``attention`` of ``export/semantic.py`` says what it computes.

    Attributes:
        node: The node itself.
        query: (batch_size, sequence_length, num_heads * head_dim); of one row where pooling is pushed down, and then
            it sees all keys: there is no window, and what lay outside of one is no longer among the keys. Of packed
            texts that is one row a text, (1, batch_size, num_heads * head_dim), which sees all keys of its text.
        key: (batch_size, sequence_length, num_kv_heads * head_dim).
        value: The same shape as the key.
        mask: (batch_size, sequence_length) of bool, or None.
        bias: (1 or batch_size, num_heads, sequence_length, sequence_length), or None.
        cu_seqlens: Where the texts of one packed row begin, (batch_size + 1,), or None.
        sinks: A score a head that each of its queries has beside those of keys, without a value, (num_heads,), or None:
            then the weights of keys do not add up to 1, nor are they the same where all scores of keys are shifted.
        num_heads: Heads of the query.
        num_kv_heads: Heads of key and value.
        head_dim: Numbers a head.
        scale: Factor of the scores.
        left_window: Tokens that a query sees to its left, -1 for all.
        right_window: The same to its right; 0 is causal.
        softcap: Limit of the scores, 0 for none.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    bias: ir.Value | None
    cu_seqlens: ir.Value | None
    sinks: ir.Value | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    left_window: int
    right_window: int
    softcap: float

    @property
    def by_distance(self) -> ir.Value | None:
        """What the bias is expanded from, (num_heads, 2 * sequence_length - 1); None for another bias."""
        node = producer(self.bias, DISTANCE_BIAS, SEMANTIC_DOMAIN)
        return None if node is None else node.inputs[0]

    @property
    def is_plain(self) -> bool:
        """Whether scores are products of queries and keys, softened by themselves: no bias, no softcap, no sinks."""
        return self.bias is None and self.sinks is None and not self.softcap

    @property
    def is_causal(self) -> bool:
        """Whether a query sees nothing to its right."""
        return self.right_window == 0

    @property
    def has_one_query_a_text(self) -> bool:
        """Whether pooling was pushed down to this attention over packed texts."""
        return self.cu_seqlens is not None and (dimensions(self.query) or ())[:2] != (dimensions(self.key) or ())[:2]

    @property
    def has_window(self) -> bool:
        """Whether a query sees less than everything, be it only because it is causal."""
        return self.left_window >= 0 or self.right_window >= 0

    @property
    def group_size(self) -> int:
        """Query heads that share one head of key and value."""
        return self.num_heads // self.num_kv_heads


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """List the semantic attention nodes of ``model`` in order."""
    return [node for node in model.graph if (node.domain, node.op_type) == (SEMANTIC_DOMAIN, "Attention")]


def read_attention(node: ir.Node) -> AttentionNode:
    """Read a semantic attention node; attributes that it lacks have the defaults of ``attention``."""
    query, key, value, mask, bias, cu_seqlens, sinks = (*node.inputs, *[None] * 4)[:7]
    axes = dimensions(query)
    assert query is not None
    assert key is not None
    assert value is not None
    assert axes is not None
    num_heads = node.attributes["num_heads"].as_int()

    def number(name: str, default: int) -> int:
        return node.attributes[name].as_int() if name in node.attributes else default

    return AttentionNode(
        node=node,
        query=query,
        key=key,
        value=value,
        mask=mask,
        bias=bias,
        cu_seqlens=cu_seqlens,
        sinks=sinks,
        num_heads=num_heads,
        num_kv_heads=number("num_kv_heads", num_heads),
        head_dim=int(axes[-1]) // num_heads,
        scale=node.attributes["scale"].as_float(),
        left_window=number("left_window", -1),
        right_window=0 if number("causal", 0) else number("right_window", -1),
        softcap=node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0,
    )
