"""Sparse embeddings: the weights of a vocabulary's words that are not 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest

MIN_NORM: Final = 1e-12
"""Smallest norm divided by: an answer of zeros stays zeros."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseEmbedding:
    """The weights of one text.

    Attributes:
        indices: (num_active,) int64, token ids in ascending order.
        values: (num_active,) float32, their weights.
        size: Width of the embedding, the vocabulary's size.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    size: int

    def __len__(self) -> int:
        """Count the weights."""
        return len(self.indices)

    def keep_largest(self, max_active_dims: int | None) -> SparseEmbedding:
        """Return the largest weights, of equal ones the first; all of them where that is None."""
        if max_active_dims is None or max_active_dims >= len(self):
            return self
        kept = np.sort(_largest(np.abs(self.values), max_active_dims))
        return SparseEmbedding(indices=self.indices[kept], values=self.values[kept], size=self.size)

    def to_unit(self) -> SparseEmbedding:
        """Return the weights divided by their L2 norm; without weights there is none to divide by."""
        norm = np.sqrt(np.square(self.values, dtype=np.float64).sum())
        values = self.values / np.maximum(norm, MIN_NORM).astype(np.float32)
        return SparseEmbedding(indices=self.indices, values=values, size=self.size)

    def to_dense(self) -> NDArray[np.float32]:
        """Return (size,), 0 where there is no weight."""
        dense = np.zeros(self.size, dtype=np.float32)
        dense[self.indices] = self.values
        return dense

    def to_dict(self) -> dict[int, float]:
        """Return the weights by token id, as search engines take them."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))


def weighs_words(manifest: Manifest) -> bool:
    """Whether a model has sparse embeddings."""
    return manifest.pooler.sparse or manifest.pooler.token_weights is not None


def check_active_dims(number: int | None, parameter: str = "max_active_dims") -> int | None:
    """Return the number of weights that are kept, None for all.

    Args:
        number: As the caller gives it.
        parameter: What it is called, for the message.

    Raises:
        InputError: not an int of 1 or more.
    """
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise InputError(f"{parameter} must be an int of 1 or more, not {number!r}", parameter=parameter, value=number)
    return int(number)


def choose_active_dims(manifest: Manifest, max_active_dims: int | None) -> int | None:
    """Return how many weights of an embedding are kept, None for all; a request's number goes before the model's.

    Raises:
        InputError: not an int of 1 or more, or the model's embeddings are dense.
    """
    if max_active_dims is not None and not weighs_words(manifest):
        raise InputError(
            f"max_active_dims is for sparse embeddings, and those of {manifest.source.model!r} are dense",
            parameter="max_active_dims",
            value=max_active_dims,
        )
    return manifest.pooler.max_active_dims if max_active_dims is None else check_active_dims(max_active_dims)


def keep_largest(rows: NDArray[np.float32], max_active_dims: int | None) -> NDArray[np.float32]:
    """Put 0 in the place of all weights of each row but the largest ones; of equal ones the first are kept.

    Args:
        rows: (num_texts, embedding_size), left as it is.
        max_active_dims: How many are kept, None for all.
    """
    if max_active_dims is None or max_active_dims >= rows.shape[-1]:
        return rows
    kept = np.zeros_like(rows)
    for row, target in zip(rows, kept, strict=True):
        active = _largest(np.abs(row), max_active_dims)
        target[active] = row[active]
    return kept


def sparsify(rows: NDArray[np.float32]) -> list[SparseEmbedding]:
    """Return each row of (num_texts, embedding_size) without its zeros."""
    found = []
    for row in rows:
        (indices,) = np.nonzero(row)
        found.append(SparseEmbedding(indices=indices, values=row[indices], size=len(row)))
    return found


def weigh_words(
    input_ids: NDArray[np.int64], weights: NDArray[np.float32], *, skipped: Sequence[int], size: int
) -> SparseEmbedding:
    """Return the weights of a text's words, each the largest of those that its tokens have (BGE-M3).

    Args:
        input_ids: (num_tokens,).
        weights: (num_tokens,), at least 0.
        skipped: Token ids that are no words.
        size: The vocabulary's size.
    """
    words, word_of = np.unique(input_ids, return_inverse=True)
    values = np.zeros(len(words), dtype=np.float32)
    np.maximum.at(values, word_of, weights)
    kept = (values > 0) & ~np.isin(words, list(skipped))
    return SparseEmbedding(indices=words[kept], values=values[kept], size=size)


def _largest(sizes: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Return where the largest numbers are; equal ones count from the left, whatever the partition makes of them."""
    bound = np.partition(sizes, -number)[-number]
    (above,), (equal,) = np.nonzero(sizes > bound), np.nonzero(sizes == bound)
    return np.concatenate([above, equal[: number - len(above)]])
