"""LFM2: gated short convolutions between layers of attention; causal, or reading both ways as in LFM2.5's embedders."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Lfm2Model, PretrainedConfig, PreTrainedModel
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from poolgraph.export.arch_interface import build_backbone as build_interface_backbone
from poolgraph.export.packing import current_cu_seqlens, text_index


class ShortConv(nn.Module):
    """LFM2's convolution: each channel of a gated row with those of the tokens around it, then a second gate.

    It is a sum over the kernel's taps of rows moved along the sequence, so that texts packed one after the other keep
    apart. Padding is cut out as transformers does it, and again where a bias of the projection brings it back. The
    parameters, and so the weight names, are the original's.
    """

    def __init__(self, original: Any, *, is_causal: bool) -> None:
        super().__init__()
        self.in_proj, self.conv, self.out_proj = original.in_proj, original.conv, original.out_proj
        self.num_left = original.conv_kernel_size - 1 if is_causal else original.conv_kernel_size // 2

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Mix (batch_size, sequence_length, hidden_size) along the sequence."""
        hidden_states = _cut_out(hidden_states, attention_mask)
        first_gate, second_gate, rows = self.in_proj(hidden_states).chunk(3, dim=-1)
        rows = _cut_out(first_gate * rows, attention_mask)
        mixed: Tensor = self.out_proj(second_gate * self._convolve(rows))
        return mixed

    def _convolve(self, rows: Tensor) -> Tensor:
        taps = self.conv.weight.squeeze(1).unbind(-1)
        convolved: Tensor = sum(_move(rows, index - self.num_left) * tap for index, tap in enumerate(taps))
        return convolved if self.conv.bias is None else convolved + self.conv.bias


def _cut_out(rows: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Make the rows of padding zero."""
    return rows if attention_mask is None else rows * attention_mask.unsqueeze(-1).to(rows.dtype)


def _move(rows: Tensor, offset: int) -> Tensor:
    """Return at each token the row ``offset`` tokens to its right, zeros beyond its text."""
    if offset == 0:
        return rows
    length = rows.shape[1]
    moved = nn.functional.pad(rows, (0, 0, max(-offset, 0), max(offset, 0)))[:, max(offset, 0) :][:, :length]
    cu_seqlens = current_cu_seqlens()
    if cu_seqlens is None:
        return moved
    text = text_index(cu_seqlens, length)
    other = nn.functional.pad(text + 1, (max(-offset, 0), max(offset, 0)))[max(offset, 0) :][:length]
    return moved * (other == text + 1).unsqueeze(-1).to(moved.dtype)


class Lfm2BidirectionalModel(Lfm2Model):  # type: ignore[no-untyped-call]
    """transformers' Lfm2Model with a kernel that is centred on its token; attention is asked for by ``is_causal``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _replace_convolutions(self, is_causal=False)


def _replace_convolutions(model: Any, *, is_causal: bool) -> None:
    for layer in model.layers:
        if isinstance(getattr(layer, "conv", None), Lfm2ShortConv):
            layer.conv = ShortConv(layer.conv, is_causal=is_causal)


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build LFM2 with our convolution; its attention goes through transformers' interface."""
    model = build_interface_backbone(model_class, config)
    _replace_convolutions(model, is_causal=True)
    return model
