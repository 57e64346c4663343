"""Heads: what follows the pooling, row by row, so that the same chain finishes pooled vectors and token vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from poolgraph.poolers.sparse_auto_encoder import KeepLargest

NORMALIZE_EPSILON = 1e-12
"""torch.nn.functional.normalize's default, as sentence-transformers and vLLM use it."""


class Dense(nn.Module):
    """A linear layer, its activation and, where asked for, a residual connection (sentence-transformers' Dense).

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether the linear layer has one.
        activation: Module applied to the linear layer's result.
        use_residual: Add the input, projected without bias when the widths differ.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, activation: nn.Module, use_residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = activation
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        result: Tensor = self.activation(self.linear(rows))
        if self.use_residual:
            result = result + (self.residual(rows) if hasattr(self, "residual") else rows)
        return result


class LayerNorm(nn.Module):
    """Layer normalization of (..., dimension).

    Args:
        dimension: Width.
        eps: Added to the variance.
        bias: Whether it has one.
    """

    def __init__(self, dimension: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension, eps=eps, bias=bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Normalize the last axis."""
        result: Tensor = self.norm(rows)
        return result


class Normalize(nn.Module):
    """Divide by the L2 norm of the last axis."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows of length one, (..., size)."""
        return functional.normalize(rows, p=2.0, dim=-1, eps=NORMALIZE_EPSILON)


class Truncate(nn.Module):
    """Keep the leading values of the last axis.

    Args:
        size: How many; all where there are fewer.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, rows: Tensor) -> Tensor:
        """Cut (..., width) to (..., size)."""
        return rows[..., : self.size]


class Standardize(nn.Module):
    """Subtract a mean from logits and divide them by a deviation (vLLM's logit_mean and logit_sigma).

    Args:
        mean: Subtracted; None for 0.
        sigma: Divided by; None for 1.
    """

    def __init__(self, mean: float | None, sigma: float | None) -> None:
        super().__init__()
        self.mean, self.sigma = mean, sigma

    def forward(self, rows: Tensor) -> Tensor:
        """Standardize (..., num_labels)."""
        if self.mean is not None:
            rows = rows - self.mean
        return rows if self.sigma is None else rows / self.sigma


class LogSaturation(nn.Module):
    """log(1 + relu(x)): weights of words that grow slower the larger they are (SPLADE, arXiv 2107.05720, equation 1).

    Args:
        times: How often the logarithm is taken; twice as of arXiv 2504.14839.
    """

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def forward(self, rows: Tensor) -> Tensor:
        """Return values of at least 0, (..., vocab_size)."""
        rows = functional.relu(rows)
        for _ in range(self.times):
            rows = torch.log1p(rows)
        return rows


class WeightedVectors(nn.Module):
    """A token's vector and, as one more value, the weight of its word (BGE-M3, arXiv 2402.03216, section 3.2).

    Args:
        in_features: Width of the rows.
        out_features: Width of the vectors.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.vector = nn.Linear(in_features, out_features)
        self.weight = nn.Linear(in_features, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features + 1); weights are at least 0."""
        return torch.cat([self.vector(rows), functional.relu(self.weight(rows))], dim=-1)


FINISHING = (KeepLargest, Normalize)
"""Modules that make the finished value of the raw one, where a chain ends with them."""


class Head(nn.Module):
    """A chain of head modules; what finishes it is kept apart so that the raw value can be had too.

    Args:
        modules: What finishes a pooled vector, and a token's row in the same way.
        pooled_modules: What a pooled vector passes before ``modules``, and a token's row does not (BERT's pooler).
        token_modules: What a token's row passes in their place; there is no finished value then.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        pooled_modules: list[nn.Module] | None = None,
        token_modules: list[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.tokens = nn.Sequential(*(token_modules or []))
        raw = drop_finish(modules)
        self.finishes = len(raw) < len(modules)
        self.pooled = nn.Sequential(*(pooled_modules or []))
        self.chain = nn.Sequential(*raw)
        self.finish = nn.Sequential(*modules[len(raw) :])

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw and the finished value of (..., in_features), both (..., size)."""
        raw = self.chain(rows)
        return raw, self.finish(raw)

    def forward_tokens(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the raw value of token rows (..., in_features), and the finished one where there is one beside it."""
        if len(self.tokens):
            return (self.tokens(rows),)
        raw, finished = self(rows)
        return (raw, finished) if self.finishes else (raw,)

    def forward_pooled(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """Return the same of pooled vectors (batch_size, in_features)."""
        raw, finished = self(self.pooled(pooled))
        return (raw, finished) if self.finishes else (raw,)


def drop_finish(modules: list[nn.Module]) -> list[nn.Module]:
    """Return the modules of the raw value: all but those at the end that finish it, of each kind one at most."""
    kinds: set[type[nn.Module]] = set()
    while modules and isinstance(modules[-1], FINISHING) and type(modules[-1]) not in kinds:
        kinds.add(type(modules[-1]))
        modules = modules[:-1]
    return modules
