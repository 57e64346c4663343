"""Rotary embeddings whose base grows with the text (dynamic NTK), without state: a text's length is its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from poolgraph.export.packing import text_lengths


class DynamicRotary(nn.Module):
    """Dynamic NTK scaling for a batch of texts of different lengths.

    Beyond the trained length T the base of a head of size d is multiplied with g^(d/(d-2)), g = s L/T - (s - 1), where
    L is the text's length and s the factor, so that frequency i is multiplied with g^(-2i/(d-2)).

    Args:
        original: transformers' module of rope_type "dynamic", which keeps the longest length it saw.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.factor = float(original.config.rope_parameters["factor"])
        self.trained = int(original.config.max_position_embeddings)
        self.scaling = float(original.attention_scaling)
        half = original.original_inv_freq.shape[0]
        self.inv_freq = nn.Buffer(original.original_inv_freq.clone(), persistent=False)
        self.exponents = nn.Buffer(-2 * torch.arange(half, dtype=torch.float32) / (2 * half - 2), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, (batch_size or 1, sequence_length, head_dim), for positions without the last axis."""
        length = text_lengths(position_ids).float()
        growth = (self.factor * length / self.trained - (self.factor - 1)).clamp(min=1.0)
        inv_freq = self.inv_freq * growth.unsqueeze(-1) ** self.exponents
        return _turn(x, position_ids.unsqueeze(-1).float() * inv_freq, self.scaling)


class LongRotary(nn.Module):
    """LongRoPE (arXiv:2402.13753) for a batch of texts of different lengths: each has the factors of its own length.

    Args:
        original: transformers' module of rope_type "longrope", which takes the longest text's factors for all.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.trained = int(original.config.rope_parameters["original_max_position_embeddings"])
        self.scaling = float(original.attention_scaling)
        long_inv_freq, _ = ROPE_INIT_FUNCTIONS["longrope"](original.config, None, seq_len=self.trained + 1)
        self.short_inv_freq = nn.Buffer(original.original_inv_freq.clone(), persistent=False)
        self.long_inv_freq = nn.Buffer(long_inv_freq, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, (batch_size or 1, sequence_length, head_dim), for positions without the last axis."""
        is_long = (text_lengths(position_ids) > self.trained).unsqueeze(-1)
        inv_freq = torch.where(is_long, self.long_inv_freq, self.short_inv_freq)
        return _turn(x, position_ids.unsqueeze(-1).float() * inv_freq, self.scaling)


def _turn(x: Tensor, angles: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)


REPLACEMENTS: Mapping[str, Callable[[Any], nn.Module]] = {"dynamic": DynamicRotary, "longrope": LongRotary}
"""Ours by transformers' rope_type."""


def replace_dynamic(model: nn.Module) -> None:
    """Put ours in the place of a model's rotary embeddings that depend on the longest text."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            kind = getattr(module, "rope_type", None)
            if isinstance(kind, str) and kind in REPLACEMENTS:
                setattr(parent, name, REPLACEMENTS[kind](module))


def forget_lengths(model: nn.Module) -> None:
    """Make transformers' dynamic rotary embeddings forget the longest text so far, whose scale a text would get."""
    for module in model.modules():
        if _is_dynamic(module):
            module.register_forward_pre_hook(_reset)


def _is_dynamic(module: nn.Module) -> bool:
    return getattr(module, "rope_type", None) == "dynamic"


def _reset(module: Any, _arguments: Any) -> None:
    module.max_seq_len_cached = module.original_max_seq_len
    module.inv_freq = module.original_inv_freq.clone()
