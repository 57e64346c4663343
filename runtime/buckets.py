"""Buckets: the fixed shapes that bound sessions run, batches of texts in them, and what padding they compute."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from poolgraph.errors import InputError

LENGTH_STEP: Final = 8
"""Lengths of buckets are multiples of it: half-precision products and attention kernels want rows of 16 bytes."""

RUN_COST_TOKENS: Final = 2048
"""What a run costs beside its tokens, in tokens, where it was not measured: about what BERT-base pays on an H200, where
512, 8,192 and 16,384 tokens take 2.0, 4.7 and 8.5 ms (benchmarks/results/gpu_h200.md: 32x16, 64x128, 32x512)."""


MOST_TOKENS: Final = 2**31 - 1
"""What a bucket may have at most: kernels and the offsets of packed texts count in 32 bits."""


class Bucket(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One fixed shape. A Struct, since buckets are compared and looked up for every batch.

    Attributes:
        max_length: The longest text that fits, in tokens.
        batch_size: Texts that fit; of a packed bucket slots, of which the tokens that fill it up need some too.
        num_tokens: Tokens of a packed bucket, whose texts stand end to end; None of a padded one, which is
            ``batch_size`` rows of ``max_length`` tokens.

    Raises:
        InputError: a size below 1, more than MOST_TOKENS, or a packed bucket whose slots do not suffice for one text
            and what fills it up.
    """

    max_length: int
    batch_size: int
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.max_length, self.batch_size, 1 if self.num_tokens is None else self.num_tokens)
        if min(sizes) < 1:
            raise InputError(f"a bucket's sizes must be at least 1, not {self}", parameter="buckets")
        if max(*sizes, self.size) > MOST_TOKENS:
            raise InputError(f"a bucket may have {MOST_TOKENS} tokens at most, not {self}", parameter="buckets")
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
    def layout(self) -> Literal["padded", "packed"]:
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


class PaddingCounter:
    """Counts tokens of all runs; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Padding()

    @property
    def total(self) -> Padding:
        """What was counted so far."""
        return self._total

    def add(self, real_tokens: int, computed_tokens: int) -> None:
        """Count a run that computed so many tokens for so many of texts."""
        with self._lock:
            self._total = Padding(
                real_tokens=self._total.real_tokens + real_tokens,
                padded_tokens=self._total.padded_tokens + computed_tokens - real_tokens,
                runs=self._total.runs + 1,
            )


def count_slots(num_tokens: int, max_length: int) -> int:
    """Return the fewest slots of a packed bucket: a text of one token, and texts of ``max_length`` that fill it up."""
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


def trim_bucket(bucket: Bucket, max_model_len: int) -> Bucket:
    """Return a bucket whose texts are no longer than the model's, padding among them: it has positions for no more.

    A padded one may still be longer by what its length is rounded up by; rotary tables reach so far.
    """
    if bucket.num_tokens is None:
        return msgspec.structs.replace(bucket, max_length=min(bucket.max_length, round_length(max_model_len)))
    length = min(bucket.max_length, max_model_len)
    more = count_slots(bucket.num_tokens, length) - count_slots(bucket.num_tokens, bucket.max_length)
    return msgspec.structs.replace(bucket, max_length=length, batch_size=bucket.batch_size + more)


def packed_bucket(num_tokens: int, max_length: int, num_texts: int = 1) -> Bucket:
    """Return a packed bucket with slots for ``num_texts`` and for what fills it up."""
    slots = count_slots(num_tokens, max_length) + num_texts - 1
    return Bucket(max_length=max_length, batch_size=slots, num_tokens=num_tokens)


def order_buckets(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """Return different buckets, largest first: warmed up in this order, memory is allocated once."""
    return tuple(sorted(set(buckets), key=lambda bucket: (-bucket.size, -bucket.max_length, -bucket.batch_size)))


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


def leave_out(buckets: Sequence[Bucket], bucket: Bucket) -> tuple[Bucket, ...]:
    """Return buckets without one that no memory was left for; half of it in the place of the last, if there is one."""
    others = tuple(other for other in buckets if other != bucket)
    if others or not buckets:
        return others
    half = halve_bucket(bucket, bucket.max_length)
    return (half,) if half.size < bucket.size else ()
