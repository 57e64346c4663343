"""MPNet: attention of its own, with a relative position bias that every layer shares."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from poolgraph.export.arch_interface import build_from_config
from poolgraph.export.semantic import ATTENTION_IMPLEMENTATION, attention, register_attention
from poolgraph.export.semantic_distance import bucket_bias

FARTHEST_DISTANCE = 128
"""From here on every distance falls into the last bucket (max_distance of MPNet's relative_position_bucket)."""


class MPNetSelfAttention(nn.Module):
    """MPNet's self-attention over the semantic op, with the projections, and so the weight names, of the original."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = original.q, original.k, original.v, original.o
        self.num_heads = int(original.num_attention_heads)
        self.scale = int(original.attention_head_size) ** -0.5

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor]:
        """Attend within (batch_size, sequence_length, hidden_size)."""
        attended = attention(
            self.q(hidden_states),
            self.k(hidden_states),
            self.v(hidden_states),
            num_heads=self.num_heads,
            scale=self.scale,
            attention_mask=attention_mask,
            attention_bias=position_bias,
        )
        return (self.o(attended),)


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build MPNet with our attention in every layer and one bias of batch size 1 for all."""
    register_attention()
    model = build_from_config(model_class, config)
    encoder: Any = model.encoder
    for layer in encoder.layer:
        layer.attention.attn = MPNetSelfAttention(layer.attention.attn)
    distances = torch.arange(-FARTHEST_DISTANCE, FARTHEST_DISTANCE + 1)
    encoder.register_buffer("buckets", encoder.relative_position_bucket(distances)[:, None], persistent=False)
    encoder.compute_position_bias = MethodType(_shared_position_bias, encoder)
    # MPNet does not declare that it supports the interface, but takes its mask from it by this name.
    model.config._attn_implementation = ATTENTION_IMPLEMENTATION
    return model


def _shared_position_bias(encoder: Any, hidden_states: Tensor) -> Tensor:
    """Return the bias by relative distance, (1, num_heads, sequence_length, sequence_length).

    The bucket of a distance depends on no text, so one bias serves the batch. The buckets are a table made by the
    reference's own formula: a logarithm that another runtime rounds differently would move a distance to the next one.
    """
    return bucket_bias(encoder.buckets, encoder.relative_attention_bias, hidden_states.shape[1])
