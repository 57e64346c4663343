"""Rotary embeddings whose base grows with the text (dynamic NTK), without state: a text's length is its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
        angles = position_ids.unsqueeze(-1).float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


def replace_dynamic(model: nn.Module) -> None:
    """Put ours in the place of a model's dynamic rotary embeddings."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if _is_dynamic(module):
                setattr(parent, name, DynamicRotary(module))


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
