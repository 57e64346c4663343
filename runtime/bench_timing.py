"""How long something takes: a call repeated until there are enough repeats, and the better of several batch sizes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

WARM_UP_CALLS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a workload is repeated: at least ``min_s`` and ``min_repeats``, but nothing starts after ``max_s``."""

    min_s: float = 1.5
    max_s: float = 5.0
    min_repeats: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The median of so many repeats, and the batch size that gave it, None where there is no choice."""

    median_s: float
    repeats: int
    batch_size: int | None


def measure(run: Callable[[], object], timing: Timing, warm_up_s: float) -> list[float]:
    """Return the seconds of each repeat of ``run``; a first call of ``warm_up_s`` counts as warm-up."""
    for _ in range(WARM_UP_CALLS):
        if warm_up_s > timing.min_s:
            break
        warm_up_s += clock(run)
    seconds: list[float] = []
    started = time.perf_counter()
    while not is_enough(len(seconds), time.perf_counter() - started, timing):
        seconds.append(clock(run))
    return seconds


def clock(run: Callable[[], object]) -> float:
    """Return the seconds that one call of ``run`` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def is_enough(repeats: int, elapsed_s: float, timing: Timing) -> bool:
    """Tell whether to stop repeating; there is always one repeat."""
    if repeats and elapsed_s >= timing.max_s:
        return True
    return repeats >= timing.min_repeats and elapsed_s >= timing.min_s


def distinct_batch_sizes(batch_sizes: Sequence[int], num_texts: int) -> list[int | None]:
    """Return the batch sizes to try on ``num_texts`` texts, of which those that hold them all are the same.

    ``[None]`` where there is nothing to choose.
    """
    sizes = sorted(batch_sizes)
    distinct: list[int | None] = [
        size for index, size in enumerate(sizes) if index == 0 or sizes[index - 1] < num_texts
    ]
    return distinct or [None]


def time_batch_sizes(
    run: Callable[[int | None], object], sizes: Sequence[int | None], timing: Timing, warm_up_s: float
) -> Timed:
    """Measure ``run`` with each batch size and return the fastest."""
    trials = []
    for size in sizes:
        seconds = measure(partial(run, size), timing, warm_up_s)
        trials.append(Timed(median_s=statistics.median(seconds), repeats=len(seconds), batch_size=size))
    return min(trials, key=lambda trial: trial.median_s)
