"""Mixtures of experts behind transformers' ExpertsInterface: two products for all experts and all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from poolgraph.errors import ExportError

EXPERTS_IMPLEMENTATION = "poolgraph"
"""The name under which our experts are registered with transformers."""


def register_experts() -> None:
    """Register our experts with transformers, so that no shape of a trace depends on which ones a token is sent to."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, all_experts)


def all_experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Map (num_tokens, hidden_size) to the same shape; experts that a token is not sent to count nothing.

    So no shape depends on the routing. Side by side the experts are two matrix products; native variants compute only
    what counts (``graphs/fuse_experts.py``).

    Args:
        module: transformers' experts, whose weights are (num_experts, out_features, in_features), or transposed.
        hidden_states: The tokens.
        top_k_index: Which experts, (num_tokens, num_chosen).
        top_k_weights: By how much each counts, of the same shape.

    Raises:
        ExportError: the experts do more than two layers with a gate between them.
    """
    if module.has_post_expert_norm:
        raise ExportError(f"{type(module).__name__} has a norm after each expert, which is not compiled")
    shape = (*hidden_states.shape[:-1], module.num_experts)
    counted = torch.zeros(shape, dtype=hidden_states.dtype).scatter(-1, top_k_index, top_k_weights).unsqueeze(0)
    name = "gate_up_proj" if module.has_gate else "up_proj"
    matrix, bias = getattr(module, name), getattr(module, f"{name}_bias", None)
    rows = matrix.transpose(1, 2) if module.is_transposed else matrix
    both = nn.functional.linear(hidden_states.unsqueeze(0), _below(rows), None if bias is None else bias.flatten())
    both = both.view(1, *shape, -1)
    inner = (module._apply_gate(both) if module.has_gate else module.act_fn(both)) * counted.unsqueeze(-1)
    columns = module.down_proj if module.is_transposed else module.down_proj.transpose(1, 2)
    result: Tensor = (inner.flatten(-2) @ _below(columns)).squeeze(0)
    return result + counted.squeeze(0) @ module.down_proj_bias if module.has_bias else result


def _below(matrices: Tensor) -> Tensor:
    """Lay matrices, (num_experts, rows, columns), below each other; the shape is no arithmetic of a trace."""
    num_experts, rows, columns = matrices.shape
    return matrices.reshape(num_experts * rows, columns)
