"""GPT-Neo, as in SGPT: attention of its own without a scale, every other layer within a window."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from poolgraph.export.arch_interface import build_from_config
from poolgraph.export.semantic import ATTENTION_IMPLEMENTATION, attention, register_attention


class GPTNeoSelfAttention(nn.Module):
    """GPT-Neo's self-attention over the semantic op, with the projections, and so the weight names, of the original."""

    def __init__(self, original: Any, window_size: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = original.q_proj, original.k_proj, original.v_proj
        self.out_proj, self.num_heads = original.out_proj, int(original.num_heads)
        self.left_window = window_size - 1 if original.attention_type == "local" else -1

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within (batch_size, sequence_length, hidden_size)."""
        attended = attention(
            self.q_proj(hidden_states),
            self.k_proj(hidden_states),
            self.v_proj(hidden_states),
            num_heads=self.num_heads,
            scale=1.0,
            causal=True,
            left_window=self.left_window,
            attention_mask=attention_mask,
        )
        return self.out_proj(attended), None


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build GPT-Neo with our attention in every layer."""
    register_attention()
    model: Any = build_from_config(model_class, config, attn_implementation="eager")
    for block in model.h:
        block.attn.attention = GPTNeoSelfAttention(block.attn.attention, int(config.window_size))
    # GPT-Neo does not support the interface, but takes its mask from it by this name.
    model.config._attn_implementation = ATTENTION_IMPLEMENTATION
    result: PreTrainedModel = model
    return result
