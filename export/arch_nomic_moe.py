"""Nomic's BERT with biases, plain GELU layers and mixtures of experts, which transformers' class lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import NomicBertModel
from transformers.activations import ACT2FN

from poolgraph.export.arch_interface import build_backbone

__all__ = ["NomicBertMoeModel", "build_backbone"]


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: Any, inner_size: int, *, up_bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, inner_size, bias=up_bias)
        self.down_proj = nn.Linear(inner_size, config.hidden_size, bias=bool(config.mlp_fc2_bias))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        rows: Tensor = self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return rows


class Experts(Mlp):
    """Experts side by side in two linear layers; those that a token is not routed to count nothing.

    All experts are computed for all tokens: no shape depends on the routing, so neither do a text's bits depend on what
    else is in the batch. The weights of the chosen experts are not normalized, and one bias serves all.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.num_experts * config.intermediate_size, up_bias=False)
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.num_chosen = int(config.moe_top_k)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        weights = self.router(hidden_states).softmax(-1)
        chosen, index = weights.topk(self.num_chosen, dim=-1)
        gates = torch.zeros_like(weights).scatter(-1, index, chosen)
        inner = self.act_fn(self.up_proj(hidden_states)).unflatten(-1, (gates.shape[-1], -1))
        rows: Tensor = self.down_proj((inner * gates.unsqueeze(-1)).flatten(-2))
        return rows


class NomicBertMoeModel(NomicBertModel):  # type: ignore[no-untyped-call]
    """transformers' NomicBertModel with other layers inside; every ``moe_every_n_layers``-th is one of experts."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        every = int(getattr(config, "moe_every_n_layers", 0) or 0)
        for index, layer in enumerate(self.layers):
            is_mixed = every > 0 and index % every == 1
            layer.mlp = (
                Experts(config)
                if is_mixed
                else Mlp(config, config.intermediate_size, up_bias=bool(config.mlp_fc1_bias))
            )
            if config.qkv_proj_bias:
                _add_biases(layer.self_attn)


def _add_biases(attention: Any) -> None:
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        linear = getattr(attention, name)
        setattr(attention, name, nn.Linear(linear.in_features, linear.out_features))
