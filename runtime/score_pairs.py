"""Which texts are scored against which, and the cosine of embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError


def plan_pairs(num_queries: int, num_documents: int) -> list[tuple[int, int]]:
    """Pair queries with documents: 1:1, 1:N (the query against each document) or N:N (in order).

    Raises:
        InputError: any other pair of lengths.
    """
    if num_queries > 1 and num_queries != num_documents:
        raise InputError("Input lengths must be either 1:1, 1:N or N:N", value=(num_queries, num_documents))
    if num_queries == 0:
        raise InputError("At least one text element must be given")
    if num_documents == 0:
        raise InputError("At least one text_pair element must be given")
    return [(index if num_queries > 1 else 0, index) for index in range(num_documents)]


def cosine_scores(
    queries: NDArray[np.float32], documents: NDArray[np.float32], pairs: list[tuple[int, int]]
) -> NDArray[np.float32]:
    """Score pairs of embeddings whose norm is 1.

    Args:
        queries: (num_queries, embedding_size), normalized.
        documents: (num_documents, embedding_size), normalized.
        pairs: Rows of each to compare.

    Returns:
        (num_pairs,); a pair's bits do not depend on the other pairs.
    """
    left = queries[[query for query, _ in pairs]]
    right = documents[[document for _, document in pairs]]
    scores: NDArray[np.float64] = (left.astype(np.float64) * right).sum(axis=-1)
    return scores.astype(np.float32)
