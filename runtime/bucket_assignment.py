"""Which bucket each text goes into: the cheapest cut of texts, sorted by length, into batches. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.buckets import RUN_COST_TOKENS, Bucket, BucketBatch, lone_bucket, round_length

EXACT_TEXTS: Final = 1024
"""Of so many texts the cheapest plan is found: some milliseconds, in which a GPU computes a small part of them. Of many
more than so many, the greedy plan is hardly worse."""

_BLOCK_TEXTS: Final = 128
"""Places whose best batches are found together, again and again until none changes: as often as batches follow one
another among so many texts, which are few."""

_NEVER: Final = 1 << 50

_Numbers: TypeAlias = NDArray[np.int64]


def assign_texts(
    lengths: Sequence[int] | _Numbers,
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
    numbers = np.asarray(lengths, dtype=np.int64)
    if not len(numbers):
        return ()
    order = np.argsort(-numbers, kind="stable")
    table = _tabulate(tuple(buckets))
    choices = _Choices(numbers[order], table.extend(_lone_buckets(numbers, table, lone)), run_cost)
    batches, start = [], 0
    for index, stop in _cut(choices):
        indices = tuple(order[start:stop].tolist())
        tokens = choices.tokens(start, stop)
        batches.append(BucketBatch(bucket=choices.table.buckets[index], indices=indices, num_tokens=tokens))
        start = stop
    return tuple(batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Buckets and their numbers side by side.

    Attributes:
        buckets: Those there are, and those that texts beyond the longest need.
        num_given: How many there are.
        shapes: (3, num_buckets): ``max_length``, ``batch_size`` and tokens of each.
    """

    buckets: tuple[Bucket, ...]
    num_given: int
    shapes: _Numbers

    @classmethod
    def build(cls, buckets: Sequence[Bucket], num_given: int) -> Self:
        """Build it; of equal costs the first counts."""
        rows = [(bucket.max_length, bucket.batch_size, bucket.size) for bucket in buckets]
        return cls(buckets=tuple(buckets), num_given=num_given, shapes=np.array(rows, np.int64).reshape(-1, 3).T)

    def extend(self, lone: Sequence[Bucket]) -> Self:
        """Return this with the buckets of texts beyond the longest."""
        return type(self).build((*self.buckets, *lone), self.num_given) if lone else self


@lru_cache(maxsize=16)
def _tabulate(buckets: tuple[Bucket, ...]) -> _Table:
    """Return a model's buckets, which seldom change: those of short attention first, then of few rows to bring back."""
    return _Table.build(sorted(buckets, key=lambda it: (it.max_length, it.batch_size)), len(buckets))


class _Choices:
    """The buckets that a batch may have, by the place in the sorted lengths where it begins.

    Attributes:
        table: The buckets.
        bounds: Tokens of all texts before each place.
        begins: Per bucket, the first place whose text fits into it.
        costs: Per bucket, what a run of it costs: its tokens, and the same for all.
    """

    def __init__(self, ordered: _Numbers, table: _Table, run_cost: int) -> None:
        self.table = table
        self.bounds = np.concatenate([[0], np.cumsum(ordered)])
        lengths, _, sizes = table.shapes
        self.begins = np.searchsorted(-ordered, -lengths)
        self.costs = sizes + run_cost

    @property
    def num_texts(self) -> int:
        """Texts in all."""
        return len(self.bounds) - 1

    def fitting(self, place: int) -> _Numbers:
        """Return which buckets can begin at a place."""
        return np.flatnonzero(self.begins <= place)

    def near(self, place: int) -> _Numbers:
        """Return the same without what a longer text needs for itself: there may be one for each text."""
        found = self.fitting(place)
        return found[: np.searchsorted(found, self.table.num_given) + 1]

    def stops(self, indices: _Numbers, places: _Numbers) -> _Numbers:
        """Return where batches end that begin at ``places``, (num_places, num_indices): a column a bucket."""
        return _TAKE[self.table.buckets[0].layout](self.bounds, self.table.shapes[:, indices], places[:, None])

    def full(self) -> _Numbers:
        """Return which buckets all texts fill to the last token: no plan costs less than one of them."""
        _, slots, sizes = self.table.shapes
        fits = (self.begins == 0) & (slots >= self.num_texts)
        return np.flatnonzero(fits & (sizes == self.bounds[-1]))

    def least_runs(self, index: int) -> int:
        """Return how many runs of a bucket all texts need at least, by its tokens and by its places for texts."""
        bucket = self.table.buckets[index]
        return max(-(-self.tokens(0, self.num_texts) // bucket.size), -(-self.num_texts // bucket.batch_size))

    def tokens(self, start: int, stop: int) -> int:
        """Return the tokens of the texts in between."""
        return int(self.bounds[stop] - self.bounds[start])


_Cuts: TypeAlias = list[tuple[int, int]]
"""Batches in order: the index of the bucket of each, and the place after its last text."""


def _cut(choices: _Choices) -> _Cuts:
    """Return the cheapest cuts found; those into a single bucket are among the candidates."""
    for index in choices.full().tolist():
        return [(index, choices.num_texts)]
    place, front = 0, []
    # Texts with buckets of their own make as many choices as there are of them.
    exact = EXACT_TEXTS if len(choices.table.buckets) == choices.table.num_given else min(EXACT_TEXTS, _BLOCK_TEXTS)
    while choices.num_texts - place > exact:
        bucket, place = _cheapest_next(choices, place)
        front.append((bucket, place))
    best = [*front, *_cheapest_tail(choices, place)]
    cost = sum(int(choices.costs[index]) for index, _ in best)
    for index in choices.fitting(0).tolist() if front else ():
        each = int(choices.costs[index])
        if choices.least_runs(index) * each < cost:  # at least so many; else its cuts need not be looked at
            single = _single_cuts(choices, index)
            if len(single) * each < cost:
                best, cost = single, len(single) * each
    return best


def _cheapest_next(choices: _Choices, place: int) -> tuple[int, int]:
    """Return the bucket that costs least by token of the texts that it takes, and where its batch ends."""
    near = choices.near(place)
    stops = choices.stops(near, np.array([place]))[0]
    costs = choices.costs[near] / np.maximum(1, choices.bounds[stops] - choices.bounds[place])
    first = costs.argmin()
    return int(near[first]), int(stops[first])


def _single_cuts(choices: _Choices, index: int) -> _Cuts:
    cuts, place = [], 0
    while place < choices.num_texts:
        place = choices.stops(np.array([index]), np.array([place])).item()
        cuts.append((index, place))
    return cuts


def _cheapest_tail(choices: _Choices, start: int) -> _Cuts:
    """Return the cheapest cuts of all texts from ``start`` on, by dynamic programming from the last text."""
    num_texts = choices.num_texts
    places = np.arange(start, num_texts)
    indices = choices.fitting(num_texts - 1)
    stops = choices.stops(indices, places)
    costs = np.where(places[:, None] < choices.begins[indices], _NEVER, choices.costs[indices])
    best = np.full(num_texts + 1, _NEVER)
    best[-1] = 0
    chosen = np.empty(len(places), dtype=np.int64)
    for last in range(len(places), 0, -_BLOCK_TEXTS):
        block = slice(max(0, last - _BLOCK_TEXTS), last)
        known = best[start:-1][block]  # a view
        while True:
            totals = costs[block] + best[stops[block]]
            found = totals.min(axis=1)
            if (found == known).all():
                break
            known[:] = found
        chosen[block] = totals.argmin(axis=1)
    cuts, place = [], start
    while place < num_texts:
        column = chosen[place - start]
        place = int(stops[place - start, column])
        cuts.append((int(indices[column]), place))
    return cuts


def _lone_buckets(lengths: _Numbers, table: _Table, lone: Callable[[int], Bucket] | None) -> list[Bucket]:
    """Return what texts beyond the longest bucket need: one more shape for each of their rounded lengths, rising."""
    longest = table.shapes[0].max(initial=0)
    layout = table.buckets[0].layout if table.buckets else "padded"
    make = partial(lone_bucket, layout=layout) if lone is None else lone
    beyond = {round_length(length): length for length in sorted(lengths[lengths > longest].tolist())}
    return list(map(make, beyond.values()))


def _take_padded(bounds: _Numbers, shapes: _Numbers, places: _Numbers) -> _Numbers:
    """Return where batches that begin at ``places`` end: after ``batch_size`` texts."""
    _, most, _ = shapes
    stops: _Numbers = np.minimum(places + most, len(bounds) - 1)
    return stops


def _take_packed(bounds: _Numbers, shapes: _Numbers, places: _Numbers) -> _Numbers:
    """Return where batches that begin at ``places`` end: when tokens or slots are used up.

    The tokens that are left over stand in texts of at most ``max_length``, each in a slot. More texts never need fewer
    slots in all, so taking back as many as there are slots too few, again and again, ends at the most that fit.
    """
    lengths, slots, tokens = shapes
    ends = bounds[places] + tokens
    stops: _Numbers = np.searchsorted(bounds, ends, side="right") - 1
    # The others have slots enough, were all their tokens left over.
    rows, columns = np.nonzero(stops - places > slots - -(-tokens // lengths))
    while len(rows):
        taken = stops[rows, columns]
        left = ends[rows, columns] - bounds[taken]
        excess = (taken - places[rows, 0]) + -(-left // lengths[columns]) - slots[columns]
        is_short = excess > 0
        rows, columns = rows[is_short], columns[is_short]
        stops[rows, columns] = (taken - excess)[is_short]
    return stops


_TAKE: Final[Mapping[str, Callable[[_Numbers, _Numbers, _Numbers], _Numbers]]] = MappingProxyType(
    {"padded": _take_padded, "packed": _take_packed}
)
"""By layout: takes ``bounds``, the buckets' ``max_length``, ``batch_size`` and tokens, and a column of places."""
