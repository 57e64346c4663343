"""Which bucket each text goes into: the cheapest cut of texts, sorted by length, into batches. Pure."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.buckets import RUN_COST_TOKENS, Bucket, BucketBatch, lone_bucket, round_length

EXACT_TEXTS: Final = 1024
"""Of so many texts the cheapest plan is found: some milliseconds, in which a GPU computes a small part of them. Of many
more than so many, the greedy plan is hardly worse."""

_NEVER: Final = 1 << 60


def assign_texts(
    lengths: Sequence[int],
    buckets: Sequence[Bucket],
    *,
    run_cost: int = RUN_COST_TOKENS,
    lone: Callable[[int], Bucket] | None = None,
) -> tuple[BucketBatch, ...]:
    """Put texts into buckets, longest first, at the least cost (``count_cost``).

    The texts are sorted by length and cut into batches of neighbours. Of all such cuts of up to ``EXACT_TEXTS`` texts
    the cheapest is taken: ``best[i] = min over buckets b that text i fits into of size(b) + run_cost + best[i +
    take(b, i)]``, where ``take`` is how many of the texts from i on fit into b. Of more texts the longest are first cut
    into batches of the least cost per token of theirs. No single bucket's own plan is ever cheaper.

    Args:
        lengths: Tokens of each text.
        buckets: All of one layout; a text longer than all of them gets a bucket of its own.
        run_cost: What a run costs beside its tokens.
        lone: Makes that bucket for texts of up to a length; None takes ``lone_bucket`` of the layout of the others.

    Returns:
        The batches, those of the longest texts first.
    """
    if not lengths:
        return ()
    numbers = np.asarray(lengths, dtype=np.int64)
    buckets = sorted(buckets, key=lambda bucket: bucket.max_length)  # of equal costs the first counts: short attention
    order = np.argsort(-numbers, kind="stable")
    full = _find_full(int(numbers.sum()), len(lengths), max(lengths), buckets)
    if full is not None:
        cuts = [(full, len(lengths))]
    else:
        cuts = _cut(_Choices(numbers[order], buckets, _lone_buckets(numbers, buckets, lone), run_cost))
    batches = []
    start = 0
    for bucket, stop in cuts:
        indices = tuple(order[start:stop].tolist())
        batches.append(BucketBatch(bucket=bucket, indices=indices, num_tokens=sum(lengths[index] for index in indices)))
        start = stop
    return tuple(batches)


def _find_full(num_tokens: int, num_texts: int, longest: int, buckets: Sequence[Bucket]) -> Bucket | None:
    """Return the bucket that texts fill to its last token, None where there is none: no plan costs less than that."""
    for bucket in buckets:
        if bucket.size == num_tokens and bucket.max_length >= longest and bucket.batch_size >= num_texts:
            return bucket
    return None


class _Choices:
    """The buckets that a batch may have, by the place in the sorted lengths where it begins.

    Attributes:
        buckets: Those there are, and those that texts beyond the longest need.
        bounds: Tokens of all texts before each place.
        begins: Per bucket, the first place whose text fits into it.
        costs: Per bucket, what a run of it costs: its tokens, and the same for all.
    """

    def __init__(
        self, ordered: NDArray[np.int64], given: Sequence[Bucket], lone: Sequence[Bucket], run_cost: int
    ) -> None:
        self.buckets = (*given, *lone)
        self._num_given = len(given)
        self.bounds = np.concatenate([[0], np.cumsum(ordered)])
        longest = np.array([-bucket.max_length for bucket in self.buckets], dtype=np.int64)
        self.begins: list[int] = np.searchsorted(-ordered, longest).tolist()
        self.costs = [bucket.size + run_cost for bucket in self.buckets]

    @property
    def num_texts(self) -> int:
        """Texts in all."""
        return len(self.bounds) - 1

    def fitting(self, place: int) -> list[int]:
        """Return which buckets can begin at a place."""
        return [index for index, begin in enumerate(self.begins) if begin <= place]

    def near(self, place: int) -> list[int]:
        """Return the same without what a longer text needs for itself: there may be one for each text."""
        given = [index for index in range(self._num_given) if self.begins[index] <= place]
        lone = bisect_left(self.begins, -place, self._num_given, key=operator.neg)
        return [*given, lone] if lone < len(self.buckets) else given

    def stop(self, index: int, place: int) -> int:
        """Return where a batch of a bucket that begins at ``place`` ends."""
        return int(_TAKE[self.buckets[index].layout](self.bounds, self.buckets[index], np.array([place]))[0])

    def stops(self, index: int, start: int) -> NDArray[np.int64]:
        """Return where batches end that begin at each place from ``start`` on."""
        return _TAKE[self.buckets[index].layout](self.bounds, self.buckets[index], np.arange(start, self.num_texts))

    def least_runs(self, index: int) -> int:
        """Return how many runs of a bucket all texts need at least, by its tokens and by its places for texts."""
        bucket = self.buckets[index]
        return max(-(-self.tokens(0, self.num_texts) // bucket.size), -(-self.num_texts // bucket.batch_size))

    def tokens(self, start: int, stop: int) -> int:
        """Return the tokens of the texts in between."""
        return int(self.bounds[stop] - self.bounds[start])


_Cuts: TypeAlias = list[tuple[int, int]]
"""Batches in order: the index of the bucket of each, and the place after its last text."""


def _cut(choices: _Choices) -> list[tuple[Bucket, int]]:
    """Return the cheapest cuts found; those into a single bucket are among the candidates."""
    place, front = 0, []
    while choices.num_texts - place > EXACT_TEXTS:
        bucket, stop = _cheapest_next(choices, place)
        front.append((bucket, stop))
        place = stop
    best = [*front, *_cheapest_tail(choices, place)]
    cost = sum(choices.costs[index] for index, _ in best)
    for index in choices.fitting(0) if front else ():
        runs = choices.least_runs(index)
        if runs * choices.costs[index] < cost:  # at least so many; else its cuts need not be looked at
            single = _single_cuts(choices, index)
            if len(single) * choices.costs[index] < cost:
                best, cost = single, len(single) * choices.costs[index]
    return [(choices.buckets[index], stop) for index, stop in best]


def _cheapest_next(choices: _Choices, place: int) -> tuple[int, int]:
    """Return the bucket that costs least by token of the texts that it takes, and where its batch ends."""
    ends = [(index, choices.stop(index, place)) for index in choices.near(place)]
    return min(ends, key=lambda it: choices.costs[it[0]] / max(1, choices.tokens(place, it[1])))


def _single_cuts(choices: _Choices, index: int) -> _Cuts:
    cuts, place = [], 0
    while place < choices.num_texts:
        place = choices.stop(index, place)
        cuts.append((index, place))
    return cuts


def _cheapest_tail(choices: _Choices, start: int) -> _Cuts:
    """Return the cheapest cuts of all texts from ``start`` on, by dynamic programming from the last text."""
    num_texts = choices.num_texts
    if start == num_texts:
        return []
    open_to = [index for index, begin in enumerate(choices.begins) if begin < num_texts]
    # (num_places, num_buckets): a row is what one place has to choose from.
    stops = np.array([choices.stops(index, start) for index in open_to]).T
    is_early = np.arange(start, num_texts)[:, None] < np.array([choices.begins[index] for index in open_to])
    costs = np.where(is_early, _NEVER, np.array([choices.costs[index] for index in open_to]))
    best = np.zeros(num_texts + 1, dtype=np.int64)
    chosen = np.zeros(num_texts, dtype=np.int64)
    for place in range(num_texts - 1, start - 1, -1):
        totals = costs[place - start] + best[stops[place - start]]
        row = totals.argmin()
        best[place], chosen[place] = totals[row], open_to[row]
    cuts = []
    while start < num_texts:
        index = int(chosen[start])
        start = choices.stop(index, start)
        cuts.append((index, start))
    return cuts


def _lone_buckets(
    lengths: NDArray[np.int64], buckets: Sequence[Bucket], lone: Callable[[int], Bucket] | None
) -> list[Bucket]:
    """Return what texts beyond the longest bucket need: one more shape for each of their rounded lengths, rising."""
    longest = max((bucket.max_length for bucket in buckets), default=0)
    layout = buckets[0].layout if buckets else "padded"
    make = partial(lone_bucket, layout=layout) if lone is None else lone
    beyond = {round_length(length): length for length in sorted(lengths[lengths > longest].tolist())}
    return list(map(make, beyond.values()))


def _take_padded(bounds: NDArray[np.int64], bucket: Bucket, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where batches that begin at ``places`` end: after ``batch_size`` texts."""
    return np.minimum(places + bucket.batch_size, len(bounds) - 1)


def _take_packed(bounds: NDArray[np.int64], bucket: Bucket, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where batches that begin at ``places`` end: when tokens or slots are used up.

    The tokens that are left over stand in texts of at most ``max_length``, each in a slot. More texts never need fewer
    slots in all, so taking back as many as there are slots too few, again and again, ends at the most that fit.
    """
    assert bucket.num_tokens is not None
    stops = np.searchsorted(bounds, bounds[places] + bucket.num_tokens, side="right") - 1
    while True:
        left = bucket.num_tokens - (bounds[stops] - bounds[places])
        excess = (stops - places) + -(-left // bucket.max_length) - bucket.batch_size
        if not (excess > 0).any():
            return stops
        stops = stops - np.maximum(excess, 0)


_TAKE: Final[Mapping[str, Callable[[NDArray[np.int64], Bucket, NDArray[np.int64]], NDArray[np.int64]]]] = (
    MappingProxyType({"padded": _take_padded, "packed": _take_packed})
)
