"""Semantic ops: what tracing keeps whole. Each has a real eager implementation and one node in the traced graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SEMANTIC_DOMAIN = "poolgraph"
ATTENTION_IMPLEMENTATION = "poolgraph"
"""The name under which our attention is registered with transformers."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    attention_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
) -> Tensor:
    """Bidirectional attention as one op.

    Args:
        query: (batch_size, sequence_length, num_heads * head_dim).
        key: The same shape as the query.
        value: The same shape as the query.
        num_heads: Heads that the last axis holds side by side.
        scale: Factor of the scores.
        attention_mask: (batch_size, sequence_length) of bool, False in padding, or None.
        attention_bias: Added to the scaled scores, (1, num_heads, sequence_length, sequence_length), or None.

    Returns:
        (batch_size, sequence_length, num_heads * head_dim).
    """
    if not torch.compiler.is_exporting():
        return _eager_attention(query, key, value, num_heads, scale, attention_mask, attention_bias)
    result: Tensor = torch.onnx.ops.symbolic(
        f"{SEMANTIC_DOMAIN}::Attention",
        (query, key, value, attention_mask, attention_bias),
        attrs={"num_heads": num_heads, "scale": scale},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    return result


def _eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    scale: float,
    attention_mask: Tensor | None,
    attention_bias: Tensor | None,
) -> Tensor:
    heads = [rows.view(*rows.shape[:2], num_heads, -1).transpose(1, 2) for rows in (query, key, value)]
    scores = heads[0] @ heads[1].transpose(-1, -2) * scale
    if attention_bias is not None:
        scores = scores + attention_bias
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None, :], torch.finfo(scores.dtype).min)
    result: Tensor = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    return result


def register_attention() -> None:
    """Register our attention and its mask with transformers, so that models built with it trace to one op a layer."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_IMPLEMENTATION, _interface_attention)
    AttentionMaskInterface.register(ATTENTION_IMPLEMENTATION, _interface_mask)


def _interface_mask(*_args: Any, attention_mask: Tensor | None = None, **_kwargs: Any) -> Tensor | None:
    """Hand the padding mask through as it is, (batch_size, sequence_length)."""
    return attention_mask


def _interface_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """Adapt transformers' (batch_size, num_heads, sequence_length, head_dim) to the semantic op's shape."""
    num_heads, head_dim = query.shape[1], query.shape[3]
    merged = [rows.transpose(1, 2).flatten(2) for rows in (query, key, value)]
    scale = head_dim**-0.5 if scaling is None else float(scaling)
    result = attention(*merged, num_heads=num_heads, scale=scale, attention_mask=attention_mask)
    return result.view(*result.shape[:2], num_heads, head_dim), None
