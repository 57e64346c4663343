"""DeepSeek V3: latent attention, experts in groups; nothing is written into, which would take traces the long way."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from poolgraph.export.arch_interface import build_backbone as build_interface_backbone


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build the model; its parameters, and so the weight names, are the original's."""
    model: Any = build_interface_backbone(model_class, config)
    for layer in model.layers:
        layer.self_attn.expand_kv = MethodType(_expand, layer.self_attn)
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.forward = MethodType(_choose_experts, layer.mlp.gate)
    result: PreTrainedModel = model
    return result


def _expand(attention: Any, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values of all heads (arXiv:2405.04434, section 2.1).

    Args:
        attention: The layer.
        latent: (batch_size, 1, sequence_length, kv_lora_rank).
        rotated: The part of the keys that all heads share, (batch_size, 1, sequence_length, qk_rope_head_dim).
    """
    batch_size, _, length, _ = latent.shape
    sizes = [attention.qk_nope_head_dim, attention.v_head_dim]
    both = attention.kv_b_proj(latent).view(batch_size, length, -1, sum(sizes)).transpose(1, 2)
    own, values = torch.split(both, sizes, dim=-1)
    return torch.cat([own, rotated.expand(-1, own.shape[1], -1, -1)], dim=-1), values


def _choose_experts(router: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, and the weights and numbers of the experts chosen, those of the best groups (arXiv:2412.19437).

    Args:
        router: The layer's.
        hidden_states: (batch_size, sequence_length, hidden_size).
    """
    rows = hidden_states.view(-1, router.hidden_dim)
    logits = functional.linear(rows.float(), router.weight.float())
    scores = logits.sigmoid()
    preferred = scores + router.e_score_correction_bias
    grouped = preferred.view(-1, router.num_group, router.num_experts // router.num_group)
    best = torch.topk(grouped.topk(2, dim=-1)[0].sum(dim=-1), k=router.topk_group, dim=-1, sorted=False)[1]
    chosen = torch.zeros_like(grouped[..., 0]).scatter(1, best, torch.full_like(best, 1.0, dtype=scores.dtype))
    hidden = chosen.unsqueeze(-1).expand_as(grouped).reshape(-1, router.num_experts) == 0
    numbers = torch.topk(preferred.masked_fill(hidden, float("-inf")), k=router.top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, numbers)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return logits, weights * router.routed_scaling_factor, numbers
