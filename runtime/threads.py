"""How many batches run at once and with how many threads each: a pure rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """``runs`` batches at once with ``threads`` threads each."""

    runs: int
    threads: int


def choose_parallelism(
    num_batches: int, cores: int, *, callers: int = 1, pinned_threads: int | None = None
) -> Parallelism:
    """Share the cores between batches: one run a core for many batches, all cores for a few.

    Only 1 and ``cores`` are ever chosen as thread counts, since each costs a session with its own packed weights. More
    batches than half the cores are faster side by side: a run on all cores waits for its slowest thread at every
    operator, so it seldom keeps more than half of them busy.

    Args:
        num_batches: Batches to run.
        cores: Cores of this process.
        callers: Calls under way in this process, this one included; they share the cores.
        pinned_threads: Threads of a run as fixed by the user; then as many runs as fit beside each other.
    """
    share = max(1, cores // callers)
    if pinned_threads is not None:
        return Parallelism(runs=_clamp(num_batches, share // pinned_threads), threads=pinned_threads)
    if callers > 1 or (num_batches > 1 and 2 * num_batches > cores):
        return Parallelism(runs=_clamp(num_batches, share), threads=1)
    return Parallelism(runs=1, threads=cores)


def _clamp(num_batches: int, most: int) -> int:
    return max(1, min(num_batches, most))
