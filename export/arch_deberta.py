"""DeBERTa v2 and v3: disentangled attention, whose scores also depend on content against distance."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from poolgraph.export.arch_interface import build_from_config
from poolgraph.export.semantic import attention

POSITION_PROJECTIONS = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
"""What projects the embeddings of the buckets for each term, where it is not what projects the tokens."""


class DisentangledAttention(nn.Module):
    """Attention with content-to-position and position-to-content terms (arXiv:2006.03654, section 3.1).

    They reach the semantic op as a bias of each text. A term is first computed by distance, the rows of all distances
    of the text against those of its tokens, then shifted into place. The projections, and so the weight names, are the
    original's; the rows by bucket depend on weights alone.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.query_proj, self.key_proj, self.value_proj = original.query_proj, original.key_proj, original.value_proj
        self.num_heads = int(original.num_attention_heads)
        self.shares_projections = bool(original.share_att_key)
        kinds = [kind for kind in ("c2p", "p2c") if kind in original.pos_att_type]
        self.scale = (int(original.attention_head_size) * (1 + len(kinds))) ** -0.5
        self.kinds = kinds if original.relative_attention else []
        if self.kinds:
            self.buckets = nn.Buffer(bucket_table(original), persistent=False)
        if self.kinds and not self.shares_projections:
            for name in [POSITION_PROJECTIONS[kind] for kind in self.kinds]:
                setattr(self, name, getattr(original, name))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *_: Any, rel_embeddings: Tensor | None, **__: Any
    ) -> tuple[Tensor, None]:
        """Attend within (batch_size, sequence_length, hidden_size), given the embeddings of the buckets."""
        query, key = self.query_proj(hidden_states), self.key_proj(hidden_states)
        attended = attention(
            query,
            key,
            self.value_proj(hidden_states),
            num_heads=self.num_heads,
            scale=self.scale,
            attention_mask=attention_mask,
            attention_bias=None if rel_embeddings is None else self._bias(query, key, rel_embeddings[None]),
        )
        return attended, None

    pos_key_proj: nn.Linear
    pos_query_proj: nn.Linear
    buckets: Tensor

    def _bias(self, query: Tensor, key: Tensor, rel_embeddings: Tensor) -> Tensor | None:
        """Return the terms of positions, (batch_size, num_heads, sequence_length, sequence_length)."""
        terms = []
        if "c2p" in self.kinds:
            project = self.key_proj if self.shares_projections else self.pos_key_proj
            terms.append(self._term(query, project(rel_embeddings), sign=-1))
        if "p2c" in self.kinds:
            project = self.query_proj if self.shares_projections else self.pos_query_proj
            terms.append(self._term(key, project(rel_embeddings), sign=1).transpose(-1, -2))
        return sum(terms[1:], terms[0]) if terms else None

    def _term(self, rows: Tensor, positions: Tensor, *, sign: int) -> Tensor:
        """Score each token against the others' distances from it.

        Args:
            rows: (batch_size, sequence_length, num_heads * head_dim).
            positions: Of each bucket, (1, num_buckets, num_heads * head_dim).
            sign: 1 where the other token is the query, whose distance from its keys the buckets are of; else -1.

        Returns:
            (batch_size, num_heads, sequence_length, sequence_length), the token itself in the last axis but one.
        """
        length, farthest = rows.shape[1], self.buckets.shape[0] // 2
        distance = torch.arange(1 - length, length, device=rows.device).clamp(-farthest, farthest)
        buckets = self.buckets.index_select(0, distance * sign + farthest)
        chosen = (positions * self.scale).index_select(1, buckets)
        split = chosen.view(*chosen.shape[:2], self.num_heads, -1).permute(0, 2, 3, 1)
        return shift_rows(rows.view(*rows.shape[:2], self.num_heads, -1).transpose(1, 2) @ split)


def shift_rows(by_distance: Tensor) -> Tensor:
    """Shift rows that are ordered by distance from their own place so that they are ordered by place.

    Args:
        by_distance: (..., length, 2 * length - 1); column ``d + length - 1`` of row ``i`` is about place ``i + d``.

    Returns:
        (..., length, length). A row of 2 * length numbers, read as one of 2 * length - 1, is one further in each row.
    """
    length = by_distance.shape[-2]
    flat = nn.functional.pad(by_distance, (0, 1)).flatten(-2)
    shifted = flat[..., : length * (2 * length - 1)].reshape(*by_distance.shape[:-2], length, 2 * length - 1)
    return shifted[..., length - 1 :]


def bucket_table(original: Any) -> Tensor:
    """Return the row of the relative embeddings for each distance, from the farthest left to the farthest right.

    Distances beyond share the last bucket. The buckets are a table made by the reference's own formula: a logarithm
    that another runtime rounds differently would move a distance to the next one.
    """
    span, longest = int(original.pos_ebd_size), int(original.max_relative_positions)
    farthest = max(span, longest)
    distances = torch.arange(-farthest, farthest + 1)
    if original.position_buckets > 0 and longest > 0:
        distances = make_log_bucket_position(distances, original.position_buckets, longest)
    return (distances.long() + span).clamp(0, 2 * span - 1)


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build DeBERTa with our attention in every layer, and without a mask where there is no padding."""
    model = build_from_config(model_class, config)
    encoder: Any = model.encoder
    for layer in encoder.layer:
        layer.attention.self = DisentangledAttention(layer.attention.self)
    model.forward = MethodType(_forward, model)
    return model


def _forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    token_type_ids: Tensor | None = None,
) -> BaseModelOutput:
    """Return the rows of (batch_size, sequence_length) tokens."""
    rows = first = model.embeddings(input_ids, token_type_ids, position_ids, mask=attention_mask)
    mask = None if attention_mask is None else attention_mask.bool()
    rel_embeddings = model.encoder.get_rel_embedding()
    for index, layer in enumerate(model.encoder.layer):
        rows, _ = layer(rows, mask, rel_embeddings=rel_embeddings)
        if index == 0 and model.encoder.conv is not None:
            rows = _add_convolution(model.encoder.conv, first, rows)
    return BaseModelOutput(last_hidden_state=rows)


def _add_convolution(conv: Any, embeddings: Tensor, rows: Tensor) -> Tensor:
    """Add neighbours to the first layer's rows; padding, whose embeddings are 0, is no neighbour."""
    near = conv.conv(embeddings.transpose(1, 2)).transpose(1, 2)
    added: Tensor = conv.LayerNorm(rows + ACT2FN[conv.conv_act](near))
    return added
