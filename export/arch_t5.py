"""T5's encoder and UMT5's: attention through transformers' interface, with a bias by relative distance and no scale."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from poolgraph.export.arch_interface import build_backbone as build_interface_backbone
from poolgraph.export.semantic_distance import bucket_bias


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build the encoder with the buckets of its distances in a table; in UMT5 each layer has its own bias of them."""
    model: Any = build_interface_backbone(model_class, config)
    model.forward = MethodType(_forward, model)
    for block in model.encoder.block:
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            _tabulate_buckets(attention)
    result: PreTrainedModel = model
    return result


def _forward(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
    """Look up the tokens in the one embedding that checkpoints store, which the encoder has under another name."""
    return model.encoder(inputs_embeds=model.shared(input_ids), attention_mask=attention_mask, **others)


def _tabulate_buckets(attention: Any) -> None:
    """Store each distance's bucket, from the reference's own formula.

    Another runtime may round its logarithm differently, and so move a distance to the next bucket.
    """
    farthest = int(attention.relative_attention_max_distance)
    distances = torch.arange(-farthest, farthest + 1)
    settings = {"num_buckets": attention.relative_attention_num_buckets, "max_distance": farthest}
    own = {} if isinstance(attention, UMT5Attention) else settings  # UMT5's reads them itself
    buckets = attention._relative_position_bucket(distances, **own)
    attention.register_buffer("buckets", buckets[:, None], persistent=False)
    attention.compute_bias = MethodType(_bias_of_distances, attention)


def _bias_of_distances(attention: Any, query_length: int, *_: Any, **__: Any) -> Tensor:
    """Return the bias, (1, num_heads, sequence_length, sequence_length)."""
    return bucket_bias(attention.buckets, attention.relative_attention_bias, query_length)
