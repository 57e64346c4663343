"""Sparse auto-encoders: dense vectors to few active features of many (CSR, arXiv 2503.01776)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STD_EPSILON = 1e-5
"""Added to the deviation by sentence-transformers' SparseAutoEncoder.LN."""


class SparseAutoEncoder(nn.Module):
    """The encoder: relu(weight @ (x - pre_bias) + latent_bias), all features.

    Args:
        input_dim: Width of the dense vectors.
        hidden_dim: Number of features.
        normalize: Whether a vector is standardized first, by its own mean and deviation.
    """

    def __init__(self, input_dim: int, hidden_dim: int, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.pre_bias = nn.Parameter(torch.zeros(input_dim))
        self.encoder = nn.Linear(input_dim, hidden_dim, bias=False)
        self.latent_bias = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., hidden_dim), at least 0."""
        if self.normalize:
            rows = rows - rows.mean(dim=-1, keepdim=True)
            rows = rows / (rows.std(dim=-1, keepdim=True) + STD_EPSILON)
        return functional.relu(functional.linear(rows - self.pre_bias, self.encoder.weight, self.latent_bias))


class KeepLargest(nn.Module):
    """Put 0 in the place of all values of the last axis but the largest ones.

    Args:
        number: How many are kept; all where there are fewer.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, rows: Tensor) -> Tensor:
        """Keep the largest of (..., size)."""
        values, indices = torch.topk(rows, min(self.number, rows.shape[-1]), dim=-1)
        return torch.zeros_like(rows).scatter(-1, indices, values)
