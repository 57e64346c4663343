"""Pooling methods: token rows to one vector a text, in float32, by the names of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from poolgraph.poolers.layout import Layout

PoolingMethod = Callable[[Layout, Tensor], Tensor]

POOLING_METHODS: Mapping[str, PoolingMethod] = MappingProxyType(
    {
        "cls": lambda layout, rows: layout.first(rows),
        "max": lambda layout, rows: layout.max(rows),
        "sum": lambda layout, rows: layout.sum(rows),
        "mean": lambda layout, rows: layout.sum(rows) / layout.count(rows),
        "mean_sqrt_len_tokens": lambda layout, rows: layout.sum(rows) / layout.count(rows).sqrt(),
        "weightedmean": lambda layout, rows: layout.weighted_sum(rows) / layout.weight_count(rows),
        "lasttoken": lambda layout, rows: layout.last(rows),
    }
)
"""Each takes a layout and rows of (..., hidden_size) and gives (batch_size, hidden_size)."""


class Pooling(nn.Module):
    """Pool token rows with one or several methods, their results side by side.

    Args:
        modes: Names of POOLING_METHODS, in the order of the result.
    """

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, layout: Layout, rows: Tensor) -> Tensor:
        """Pool rows of (..., hidden_size) to (batch_size, len(modes) * hidden_size), accumulated in float32."""
        rows = rows.float()
        pooled = [POOLING_METHODS[mode](layout, rows) for mode in self.modes]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)
