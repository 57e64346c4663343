"""Which texts are scored against which, in which order they are embedded, and the cosine of embeddings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError


def plan_pairs(num_queries: int, num_documents: int) -> list[tuple[int, int]]:
    """Pair queries with documents: 1:1, 1:N (the query against each document) or N:N (in order).

    Raises:
        InputError: any other pair of lengths.
    """
    if num_queries > 1 and num_queries != num_documents:
        raise InputError(
            f"Input lengths must be either 1:1, 1:N or N:N; got {num_queries} queries and {num_documents} documents",
            value=(num_queries, num_documents),
        )
    if num_queries == 0:
        raise InputError("At least one text element must be given; pass a query, or one for each document")
    if num_documents == 0:
        raise InputError("At least one text_pair element must be given; pass a document or several")
    return [(index if num_queries > 1 else 0, index) for index in range(num_documents)]


@dataclass(frozen=True, slots=True)
class EmbedStep:
    """One step of embedding the texts of pairs, of which only one side streams by.

    Attributes:
        streamed: Texts of the streamed side that are embedded in this step, from first to last plus one.
        held: Texts of the other side that are embedded in this step too, because a pair needs them first here.
        pairs: The pairs that are scored in this step.
        released: Texts of the other side that no later step needs.
    """

    streamed: range
    held: tuple[int, ...]
    pairs: tuple[int, ...]
    released: tuple[int, ...]


def plan_steps(pairs: Sequence[tuple[int, int]], costs: Sequence[int], budget: int) -> Iterator[EmbedStep]:
    """Yield the steps in which texts are embedded, each once, so that few of their embeddings are there at a time.

    Args:
        pairs: (text of the held side, text of the streamed side).
        costs: Of each text of the streamed side, in whatever unit bounds the memory of a step.
        budget: Cost of a step; a text that costs more has a step of its own.
    """
    by_streamed = sorted(range(len(pairs)), key=lambda index: pairs[index][1])
    last_use = {pairs[index][0]: pairs[index][1] for index in by_streamed}
    seen: set[int] = set()
    start = 0
    for streamed in _cut_ranges(costs, budget):
        stop = bisect_left(by_streamed, streamed.stop, lo=start, key=lambda index: pairs[index][1])
        indices = tuple(by_streamed[start:stop])
        used = dict.fromkeys(pairs[index][0] for index in indices)
        new = tuple(held for held in used if held not in seen)
        seen.update(new)
        yield EmbedStep(streamed, new, indices, tuple(held for held in used if last_use[held] in streamed))
        start = stop


def _cut_ranges(costs: Sequence[int], budget: int) -> list[range]:
    ranges: list[range] = []
    start = spent = 0
    for index, cost in enumerate(costs):
        if index > start and spent + cost > budget:
            ranges.append(range(start, index))
            start, spent = index, 0
        spent += cost
    if costs:
        ranges.append(range(start, len(costs)))
    return ranges


def cosine_scores(
    queries: NDArray[np.float32], documents: NDArray[np.float32], pairs: Sequence[tuple[int, int]]
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
