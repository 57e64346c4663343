"""How far answers agree with others, in numbers: ranks, neighbours, labels, retrieval; pure numpy."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]


def average_ranks(values: Floats) -> NDArray[np.float64]:
    """Rank values from 1; equal ones share the mean of their ranks.

    Args:
        values: (num_values,).

    Returns:
        (num_values,).
    """
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return ranks


def spearman(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation of two arrays of one shape, taken flat.

    It is the correlation of the average ranks; NaN where all values of a side are equal, so that nothing has a rank.
    """
    left, right = (average_ranks(np.ravel(side)) for side in (first, second))
    left, right = left - left.mean(), right - right.mean()
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale > 0 else float("nan")


def top_indices(scores: Floats, count: int) -> NDArray[np.intp]:
    """Return the indices of each row's largest scores, the best first; of equal scores the first one.

    Args:
        scores: (num_queries, num_documents).
        count: How many; all where there are fewer.

    Returns:
        (num_queries, min(count, num_documents)).
    """
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def top_overlap(first: Floats, second: Floats, count: int) -> float:
    """Return the mean share of each query's best documents that both sides have, whatever their order.

    Args:
        first: (num_queries, num_documents).
        second: The same shape.
        count: How many are the best.
    """
    pairs = zip(top_indices(first, count), top_indices(second, count), strict=True)
    return float(np.mean([np.isin(left, right).mean() for left, right in pairs]))


def recall_at(scores: Floats, relevant: NDArray[np.bool_], count: int) -> float:
    """Return the mean share of each query's relevant documents that are among its best.

    Args:
        scores: (num_queries, num_documents).
        relevant: The same shape, with at least one document a query.
        count: How many are the best.
    """
    found = np.take_along_axis(relevant, top_indices(scores, count), axis=1).sum(axis=1)
    return float(np.mean(found / relevant.sum(axis=1)))


def ndcg_at(scores: Floats, relevant: NDArray[np.bool_], count: int) -> float:
    """Return the mean normalized discounted cumulative gain of each query's best; a relevant document gains 1.

    Args:
        scores: (num_queries, num_documents).
        relevant: The same shape, with at least one document a query.
        count: How many are the best.
    """
    gains = np.take_along_axis(relevant, top_indices(scores, count), axis=1)
    discounts = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    reached = np.minimum(relevant.sum(axis=1), gains.shape[1])
    ideal = np.cumsum(discounts)[reached - 1]
    return float(np.mean(gains @ discounts / ideal))


def label_agreement(first: Floats, second: Floats) -> float:
    """Return the share of rows whose largest value is in the same column.

    Args:
        first: (num_rows, num_labels).
        second: The same shape.
    """
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def largest_difference(first: Floats, second: Floats) -> float:
    """Return the largest absolute difference of two arrays of one shape."""
    return float(np.abs(np.asarray(first, np.float64) - second).max())
