"""Jamba: layers of Mamba between layers of attention, and mixtures of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.jamba.modeling_jamba import JambaMambaMixer, JambaSparseMoeBlock

from poolgraph.export.arch_interface import build_backbone as build_interface_backbone
from poolgraph.export.semantic_scan import selective_scan

SERIES_TERMS = 8
"""Of the logarithm in ``softplus``."""


class MambaMixer(nn.Module):
    """A Mamba layer (arXiv:2312.00752; Jamba's norms: arXiv:2403.19887) over the semantic scan.

    Padding is cut out before the convolution and before the scan, so that tokens after it find nothing of it. The
    parameters, and so the weight names, are the original's.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.in_proj, self.conv1d, self.x_proj = original.in_proj, original.conv1d, original.x_proj
        self.dt_proj, self.out_proj, self.act = original.dt_proj, original.out_proj, original.act
        self.dt_layernorm = original.dt_layernorm
        self.b_layernorm, self.c_layernorm = original.b_layernorm, original.c_layernorm
        self.A_log, self.D = original.A_log, original.D
        self.sizes = [int(original.time_step_rank), int(original.ssm_state_size), int(original.ssm_state_size)]

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Mix (batch_size, sequence_length, hidden_size) along the sequence."""
        rows, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        rows = _cut_out(self._convolve(_cut_out(rows, attention_mask)), attention_mask)
        time_step, write, read = self.x_proj(rows).split(self.sizes, dim=-1)
        scanned = selective_scan(
            rows,
            softplus(self.dt_proj(self.dt_layernorm(time_step))),
            -self.A_log.exp(),
            self.b_layernorm(write),
            self.c_layernorm(read),
        )
        mixed: Tensor = self.out_proj((scanned + rows * self.D) * nn.functional.silu(gate))
        return mixed

    def _convolve(self, rows: Tensor) -> Tensor:
        """Convolve each channel of (batch_size, sequence_length, num_channels) with what is to its left."""
        weight, bias = self.conv1d.weight, self.conv1d.bias
        padded = nn.functional.pad(rows.transpose(1, 2), (weight.shape[-1] - 1, 0))
        convolved: Tensor = self.act(nn.functional.conv1d(padded, weight, bias, groups=weight.shape[0]))
        return convolved.transpose(1, 2)


class Experts(nn.Module):
    """Experts that are all computed for all tokens; those that a token is not routed to count nothing.

    So no shape depends on the routing, nor do a text's bits on what else is in the batch. Side by side the experts are
    two matrix products. The weights of the chosen ones are not normalized. The parameters are the original's.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.router, self.experts, self.num_chosen = original.router, original.experts, int(original.top_k)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        weights = nn.functional.linear(hidden_states, self.router.weight).softmax(-1)
        chosen, index = weights.topk(self.num_chosen, dim=-1)
        counted = torch.zeros_like(weights).scatter(-1, index, chosen).unsqueeze(-1)
        both = nn.functional.linear(hidden_states, self.experts.gate_up_proj.flatten(0, 1))
        gate, up = both.view(*both.shape[:2], counted.shape[-2], -1).chunk(2, dim=-1)
        inner = self.experts.act_fn(gate) * up * counted
        rows: Tensor = inner.flatten(-2) @ self.experts.down_proj.transpose(1, 2).flatten(0, 1)
        return rows


def softplus(values: Tensor) -> Tensor:
    """Return ``log(1 + exp(values))``, in operators of which ONNX Runtime gives the same bits in every batch.

    Its Softplus and Log do not: threads share the numbers out, and those at the edge of a share are rounded in another
    way. ``log(1 + y)`` is ``2 atanh(z)`` with ``z = y / (2 + y)`` (Abramowitz and Stegun 4.1.27), whose series in
    ``z ** 2``, at most 1 / 9 here, is cut off at a relative 1e-9.
    """
    smaller = (-values.abs()).exp()
    ratio = smaller / (2 + smaller)
    square = ratio * ratio
    series = torch.full_like(square, 1 / (2 * SERIES_TERMS - 1))
    for term in reversed(range(SERIES_TERMS - 1)):
        series = series * square + 1 / (2 * term + 1)
    return values.clamp(min=0) + 2 * ratio * series


def _cut_out(rows: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Make the rows of padding zero."""
    return rows if attention_mask is None else rows * attention_mask.unsqueeze(-1).to(rows.dtype)


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build Jamba with our mixers and experts; its attention goes through transformers' interface."""
    model = build_interface_backbone(model_class, config)
    layers: Any = model.layers
    for layer in layers:
        if isinstance(getattr(layer, "mamba", None), JambaMambaMixer):
            layer.mamba = MambaMixer(layer.mamba)
        if isinstance(layer.feed_forward, JambaSparseMoeBlock):
            layer.feed_forward = Experts(layer.feed_forward)
    return model
