"""How many batches run at once and with how many threads each: a pure rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """``runs`` batches at once with ``threads`` threads each."""

    runs: int
    threads: int


def choose_parallelism(
    num_batches: int,
    cores: int,
    *,
    callers: int = 1,
    pinned_threads: int | None = None,
    tuned_threads: int | None = None,
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
        tuned_threads: Threads of a run as measured on this machine; likewise, but batches too few to fill the cores so,
            and callers whose share of the cores is smaller than one such run, keep to the rule.
    """
    share = max(1, cores // callers)
    if pinned_threads is not None:
        return Parallelism(runs=_clamp(num_batches, share // pinned_threads), threads=pinned_threads)
    if tuned_threads is not None and tuned_threads <= share <= num_batches * tuned_threads:
        return Parallelism(runs=_clamp(num_batches, share // tuned_threads), threads=tuned_threads)
    if callers > 1 or (num_batches > 1 and 2 * num_batches > cores):
        return Parallelism(runs=_clamp(num_batches, share), threads=1)
    return Parallelism(runs=1, threads=cores)


def count_runs(
    cores: int, *, callers: int = 1, pinned_threads: int | None = None, tuned_threads: int | None = None
) -> int:
    """Return how many runs fit beside each other, at least 1; arguments are those of ``choose_parallelism``."""
    share = max(1, cores // callers)
    tuned = tuned_threads if tuned_threads is not None and tuned_threads <= share else None
    return max(1, share // (pinned_threads or tuned or 1))


def _clamp(num_batches: int, most: int) -> int:
    return max(1, min(num_batches, most))
