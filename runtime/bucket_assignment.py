"""Which bucket each text goes into: the cheapest cut of texts, sorted by length, into batches. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.buckets import RUN_COST_TOKENS, Bucket, BucketBatch, lone_bucket, round_length

EXACT_TEXTS: Final = 512
"""Of so many texts the cheapest plan is found: some milliseconds of Python, while the batches before them run."""


def assign_texts(
    lengths: Sequence[int], buckets: Sequence[Bucket], *, run_cost: int = RUN_COST_TOKENS
) -> tuple[BucketBatch, ...]:
    """Put texts into buckets, longest first, at the least cost (``count_cost``).

    The texts are sorted by length and cut into batches of neighbours. Of all such cuts of up to ``EXACT_TEXTS`` texts
    the cheapest is taken: ``best[i] = min over buckets b that text i fits into of size(b) + run_cost + best[i +
    take(b, i)]``, where ``take`` is how many of the texts from i on fit into b. Of more texts the longest are first cut
    into batches of the least cost per token of theirs. No single bucket's own plan is ever cheaper.

    Args:
        lengths: Tokens of each text.
        buckets: All of one layout; a text longer than all of them gets a bucket of its own (``lone_bucket``).
        run_cost: What a run costs beside its tokens.

    Returns:
        The batches, those of the longest texts first.
    """
    if not lengths:
        return ()
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    cuts = _cut(_Choices(np.asarray(lengths, dtype=np.int64)[order], tuple(buckets), run_cost))
    batches = []
    start = 0
    for bucket, stop in cuts:
        indices = tuple(order[start:stop].tolist())
        batches.append(BucketBatch(bucket=bucket, indices=indices, num_tokens=sum(lengths[index] for index in indices)))
        start = stop
    return tuple(batches)


class _Choices:
    """The buckets that a batch may have, by the place in the sorted lengths where it begins.

    Attributes:
        buckets: Those there are, and those that texts beyond the longest need.
        bounds: Tokens of all texts before each place.
        begins: Per bucket, the first place whose text fits into it.
        costs: Per bucket, what a run of it costs.
        stops: Per bucket, where a batch that begins at each place ends.
    """

    def __init__(self, ordered: NDArray[np.int64], buckets: tuple[Bucket, ...], run_cost: int) -> None:
        self.buckets = _with_lone_buckets(ordered, buckets)
        self.bounds = np.concatenate([[0], np.cumsum(ordered)])
        self.begins = [int(np.searchsorted(-ordered, -bucket.max_length)) for bucket in self.buckets]
        self.costs = [bucket.size + run_cost for bucket in self.buckets]
        self.stops = [_TAKE[bucket.layout](ordered, bucket) for bucket in self.buckets]

    def fitting(self, place: int) -> list[int]:
        """Return which buckets can begin at a place."""
        return [index for index, begin in enumerate(self.begins) if begin <= place]


_Cuts: TypeAlias = list[tuple[Bucket, int]]
"""Batches in order: the bucket of each, and the place after its last text."""


def _cut(choices: _Choices) -> _Cuts:
    """Return the cheapest cuts found; those into a single bucket are among the candidates."""
    num_texts = len(choices.bounds) - 1
    place = 0
    front: list[tuple[int, int]] = []
    while num_texts - place > EXACT_TEXTS:
        bucket = min(choices.fitting(place), key=lambda index: _cost_per_token(choices, index, place))
        place = int(choices.stops[bucket][place])
        front.append((bucket, place))
    candidates = [[*front, *_cheapest_tail(choices, place)]]
    candidates += [_single_cuts(choices, index) for index in choices.fitting(0)] if front else []
    cheapest = min(candidates, key=lambda cuts: sum(choices.costs[index] for index, _ in cuts))
    return [(choices.buckets[index], stop) for index, stop in cheapest]


def _cost_per_token(choices: _Choices, index: int, place: int) -> float:
    tokens = int(choices.bounds[choices.stops[index][place]] - choices.bounds[place])
    return choices.costs[index] / max(1, tokens)


def _single_cuts(choices: _Choices, index: int) -> list[tuple[int, int]]:
    cuts, place = [], 0
    while place < len(choices.bounds) - 1:
        place = int(choices.stops[index][place])
        cuts.append((index, place))
    return cuts


def _cheapest_tail(choices: _Choices, start: int) -> list[tuple[int, int]]:
    """Return the cheapest cuts of all texts from ``start`` on, by dynamic programming from the last text."""
    num_texts = len(choices.bounds) - 1
    rows = [
        (index, begin, cost, [0] * start + stops[start:].tolist())
        for index, (begin, cost, stops) in enumerate(zip(choices.begins, choices.costs, choices.stops, strict=True))
    ]
    best = [0] * (num_texts + 1)
    chosen = [0] * num_texts
    for place in range(num_texts - 1, start - 1, -1):
        best[place], chosen[place] = min(
            (cost + best[stops[place]], index) for index, begin, cost, stops in rows if begin <= place
        )
    cuts = []
    while start < num_texts:
        index = chosen[start]
        start = int(choices.stops[index][start])
        cuts.append((index, start))
    return cuts


def _with_lone_buckets(ordered: NDArray[np.int64], buckets: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    """Add what texts beyond the longest bucket need: one more shape for each of their rounded lengths."""
    longest = max((bucket.max_length for bucket in buckets), default=0)
    layout = buckets[0].layout if buckets else "padded"
    beyond = {round_length(int(length)) for length in ordered if length > longest}
    return (*buckets, *(lone_bucket(length, layout) for length in sorted(beyond)))


def _take_padded(ordered: NDArray[np.int64], bucket: Bucket) -> NDArray[np.int64]:
    """Return where a batch that begins at each place ends: after ``batch_size`` texts."""
    return np.minimum(np.arange(len(ordered)) + bucket.batch_size, len(ordered))


def _take_packed(ordered: NDArray[np.int64], bucket: Bucket) -> NDArray[np.int64]:
    """Return where a batch that begins at each place ends: when tokens or slots are used up.

    The tokens that are left over stand in texts of at most ``max_length``, each in a slot. More texts never need fewer
    slots in all, so taking back as many as there are slots too few, again and again, ends at the most that fit.
    """
    assert bucket.num_tokens is not None
    bounds = np.concatenate([[0], np.cumsum(ordered)])
    starts = np.arange(len(ordered))
    stops = np.searchsorted(bounds, bounds[:-1] + bucket.num_tokens, side="right") - 1
    while True:
        left = bucket.num_tokens - (bounds[stops] - bounds[starts])
        excess = (stops - starts) + -(-left // bucket.max_length) - bucket.batch_size
        if not (excess > 0).any():
            return stops
        stops = stops - np.maximum(excess, 0)


_TAKE: Final[Mapping[str, Callable[[NDArray[np.int64], Bucket], NDArray[np.int64]]]] = MappingProxyType(
    {"padded": _take_padded, "packed": _take_packed}
)
