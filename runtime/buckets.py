"""Buckets: the fixed shapes that bound sessions run, and which of them each text goes into. Pure functions of lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError

LENGTH_STEP: Final = 8
"""Lengths of buckets are multiples of it: half-precision products and attention kernels want rows of 16 bytes."""

RUN_COST_TOKENS: Final = 512
"""What a run costs beside its tokens, in tokens: a launch of a CUDA graph, its copies and its turn in the queue take as
long as a base-size encoder takes for a few hundred of them."""

EXACT_TEXTS: Final = 512
"""Of so many texts the cheapest plan is found: some milliseconds of Python, while the batches before them run."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Bucket:
    """One fixed shape.

    Attributes:
        max_length: The longest text that fits, in tokens.
        batch_size: Texts that fit; of a packed bucket slots, of which the tokens that fill it up need some too.
        num_tokens: Tokens of a packed bucket, whose texts stand end to end; None of a padded one, which is
            ``batch_size`` rows of ``max_length`` tokens.

    Raises:
        InputError: a size below 1, or a packed bucket whose slots do not suffice for one text and what fills it up.
    """

    max_length: int
    batch_size: int
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.max_length, self.batch_size, 1 if self.num_tokens is None else self.num_tokens)
        if min(sizes) < 1:
            raise InputError(f"a bucket's sizes must be at least 1, not {self}", parameter="buckets")
        if self.num_tokens is None:
            return
        if self.num_tokens < self.max_length:
            raise InputError(f"{self} has no place for a text of its own longest length", parameter="buckets")
        if self.batch_size < count_slots(self.num_tokens, self.max_length):
            raise InputError(
                f"{self} needs at least {count_slots(self.num_tokens, self.max_length)} slots: one for a text, the "
                "others for the tokens that fill it up",
                parameter="buckets",
            )

    @property
    def size(self) -> int:
        """Tokens that a run of it computes."""
        return self.batch_size * self.max_length if self.num_tokens is None else self.num_tokens

    @property
    def layout(self) -> str:
        """``padded`` or ``packed``."""
        return "padded" if self.num_tokens is None else "packed"

    def __str__(self) -> str:
        shape = f"{self.batch_size}x{self.max_length}"
        return shape if self.num_tokens is None else f"{self.num_tokens} tokens of at most {shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketBatch:
    """Texts that run together: ``indices`` into the caller's list, ``num_tokens`` of their own."""

    bucket: Bucket
    indices: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """How many tokens were asked for and how many were computed to answer them, in how many runs."""

    real_tokens: int = 0
    padded_tokens: int = 0
    runs: int = 0

    @property
    def waste(self) -> float:
        """Padding as a share of all tokens computed."""
        computed = self.real_tokens + self.padded_tokens
        return self.padded_tokens / computed if computed else 0.0

    def __add__(self, other: Padding) -> Padding:
        return Padding(
            real_tokens=self.real_tokens + other.real_tokens,
            padded_tokens=self.padded_tokens + other.padded_tokens,
            runs=self.runs + other.runs,
        )


def count_slots(num_tokens: int, max_length: int) -> int:
    """Return the fewest slots of a packed bucket: one text of one token, and texts of ``max_length`` that fill it up."""
    return 1 + -(-(num_tokens - 1) // max_length)


def round_length(length: int) -> int:
    """Round a length in tokens up to what buckets have."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def count_padding(batches: Sequence[BucketBatch]) -> Padding:
    """Count the tokens of texts and of padding that batches compute."""
    real = sum(batch.num_tokens for batch in batches)
    return Padding(
        real_tokens=real, padded_tokens=sum(batch.bucket.size for batch in batches) - real, runs=len(batches)
    )


def count_cost(batches: Sequence[BucketBatch], run_cost: int = RUN_COST_TOKENS) -> int:
    """Return what batches cost, in tokens: those that they compute, and ``run_cost`` a run."""
    return sum(batch.bucket.size + run_cost for batch in batches)


def lone_bucket(length: int, layout: str) -> Bucket:
    """Return a bucket for one text of ``length`` tokens that no planned bucket is long enough for."""
    rounded = round_length(length)
    return Bucket(max_length=rounded, batch_size=1) if layout == "padded" else packed_bucket(rounded, rounded)


def packed_bucket(num_tokens: int, max_length: int, num_texts: int = 1) -> Bucket:
    """Return a packed bucket with slots for ``num_texts`` and for what fills it up."""
    slots = count_slots(num_tokens, max_length) + num_texts - 1
    return Bucket(max_length=max_length, batch_size=slots, num_tokens=num_tokens)


def halve_bucket(bucket: Bucket, longest: int) -> Bucket:
    """Return a bucket of about half the size, for a batch that no memory was left for.

    Args:
        bucket: The one that failed.
        longest: The longest text of the batch, in tokens; one of them still fits. If that alone needs as much, the
            bucket returned is no smaller.
    """
    length = min(bucket.max_length, round_length(longest))
    num_texts = -(-bucket.batch_size // 2)
    if bucket.num_tokens is None:
        return Bucket(max_length=length, batch_size=num_texts)
    return packed_bucket(max(length, -(-bucket.num_tokens // 2)), length, num_texts)


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
