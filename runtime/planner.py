"""Cuts a list of texts into batches by their lengths alone: pure functions, no texts, no sessions."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal, TypeAlias

BatchLayout: TypeAlias = Literal["uniform", "padded", "packed"]
"""What a batch looks like: texts of one length, texts padded to the longest, or texts of any lengths end to end."""

MAX_BATCH_TOKENS: Final = 512
"""Default token budget: the activations of so many tokens stay in a core's cache."""

MIN_SPLIT_TOKENS: Final = 32
"""A batch up to this size is not cut in two for a core without work: starting a thread costs more than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Texts that run together.

    Attributes:
        indices: Into the caller's list.
        length: Of the longest text, in tokens.
        num_tokens: Tokens that the batch computes, padding included.
    """

    indices: tuple[int, ...]
    length: int
    num_tokens: int


def plan_batches(
    lengths: Sequence[int], *, max_batch_tokens: int = MAX_BATCH_TOKENS, runs: int = 1
) -> tuple[Batch, ...]:
    """Cut texts into batches of equal length, longest first.

    Args:
        lengths: Tokens of each text.
        max_batch_tokens: Token budget of a batch; a longer text is a batch of its own.
        runs: Batches that can run at once; groups are cut finer so that each of them has work.
    """
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    batches = [
        _even_batch(part, length)
        for length, group in groups.items()
        for part in _even_parts(group, max(1, max_batch_tokens // max(1, length)))
    ]
    return _split_for_runs(batches, lengths, runs)


def plan_padded_batches(
    lengths: Sequence[int], *, max_batch_tokens: int = MAX_BATCH_TOKENS, runs: int = 1
) -> tuple[Batch, ...]:
    """Cut texts into batches of neighbouring lengths, longest first; the budget counts the padding.

    Args: as of ``plan_batches``.
    """
    batches = []
    order = _longest_first(lengths)
    start = 0
    while start < len(order):
        length = lengths[order[start]]
        stop = start + max(1, max_batch_tokens // max(1, length))
        batches.append(_even_batch(tuple(order[start:stop]), length))
        start = stop
    return _split_for_runs(batches, lengths, runs)


def plan_packed_batches(
    lengths: Sequence[int], *, max_batch_tokens: int = MAX_BATCH_TOKENS, runs: int = 1, lone_fills: bool = False
) -> tuple[Batch, ...]:
    """Cut texts of any lengths, longest first, into batches of which the largest is as small as can be.

    There are as few batches as fit the budget, rounded up to whole rounds of the runs, so that all runs end together.
    Texts of like length are neighbours: batches that run beside each other cost the same, and the last ones least.

    Args:
        lengths: As of ``plan_batches``.
        max_batch_tokens: As of ``plan_batches``.
        runs: As of ``plan_batches``.
        lone_fills: Whether a batch alone gets the cores of all runs. Then one is not cut: measured on two cores, it is
            as fast as its halves beside each other with 480 tokens, and takes half of their time with 80.
    """
    order = _longest_first(lengths)
    ends = list(accumulate(lengths[index] for index in order))
    few = len(_cut(ends, max_batch_tokens))
    most = few if few == 1 and lone_fills else -(-few // runs) * runs
    least = min(MIN_SPLIT_TOKENS, max_batch_tokens)
    spare = bisect_left(range(least, max_batch_tokens), True, key=lambda size: len(_cut(ends, size)) <= most)
    bounds = [0, *_cut(ends, least + spare)]
    return tuple(
        Batch(
            indices=tuple(order[start:stop]),
            length=lengths[order[start]],
            num_tokens=ends[stop - 1] - (ends[start - 1] if start else 0),
        )
        for start, stop in pairwise(bounds)
    )


def plan_sorted_batches(lengths: Sequence[int], batch_size: int) -> tuple[Batch, ...]:
    """Cut texts, longest first, into batches of ``batch_size``: what users of other engines do."""
    order = _longest_first(lengths)
    cuts = [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    return tuple(_even_batch(cut, lengths[cut[0]]) for cut in cuts)


def count_padding(lengths: Sequence[int], batches: Iterable[Batch]) -> int:
    """Count the padding tokens that the batches compute beside the texts' own."""
    return sum(batch.num_tokens - sum(lengths[index] for index in batch.indices) for batch in batches)


def _even_batch(indices: tuple[int, ...], length: int) -> Batch:
    """Return a batch that computes ``length`` tokens of each text."""
    return Batch(indices=indices, length=length, num_tokens=length * len(indices))


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _cut(ends: Sequence[int], size: int) -> list[int]:
    """Fill parts of at most ``size`` tokens in turn, a longer text being one of its own; return where each stops.

    Args:
        ends: Tokens up to the end of each text.
        size: Tokens of a part.
    """
    stops, start, before = [], 0, 0
    while start < len(ends):
        start = max(start + 1, bisect_right(ends, before + size, start))
        stops.append(start)
        before = ends[start - 1]
    return stops


def _even_parts(indices: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Cut into the fewest parts of at most ``limit``, their sizes at most 1 apart."""
    num_parts = -(-len(indices) // limit)
    bounds = [len(indices) * part // num_parts for part in range(num_parts + 1)]
    return [tuple(indices[start:stop]) for start, stop in pairwise(bounds)]


def _split_for_runs(batches: Iterable[Batch], lengths: Sequence[int], runs: int) -> tuple[Batch, ...]:
    """Halve the largest batches until every run has one, then order by length, longest first."""
    heap = [(-batch.num_tokens, batch.indices, batch) for batch in batches]
    heapq.heapify(heap)
    done: list[Batch] = []
    while heap and len(heap) + len(done) < runs:
        batch = heapq.heappop(heap)[2]
        if len(batch.indices) < 2 or batch.num_tokens <= MIN_SPLIT_TOKENS:
            done.append(batch)
            continue
        for part in _even_parts(batch.indices, -(-len(batch.indices) // 2)):
            half = _even_batch(part, max(lengths[index] for index in part))
            heapq.heappush(heap, (-half.num_tokens, half.indices, half))
    done += [entry[2] for entry in heap]
    return tuple(sorted(done, key=lambda batch: (-batch.length, batch.indices[0])))
