"""``poolgraph bench --tune``: which plan is fastest on this machine, and whether it beats the default for sure.

Every plan of a small grid that runs the workload differently is measured in processes of their own, in turn. The
fastest is then measured again, in fresh processes in turn with the default, and these alone decide: the choice among
many plans favours those that were lucky.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace as replace_struct

from poolgraph import __version__
from poolgraph.errors import InputError, SessionError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.bench_child import Job, run_child
from poolgraph.runtime.bench_engines import EngineRequest
from poolgraph.runtime.bench_run import Run, Say, scratch_job
from poolgraph.runtime.bench_timing import Timing
from poolgraph.runtime.bench_workloads import Workload
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.executor import WorkPlan, plan_work
from poolgraph.runtime.inspect import format_table
from poolgraph.runtime.runner import Runner, build_runner
from poolgraph.runtime.tuning import Tuning, TuningEntry

BUDGETS: Final = (128, 256, 512, 1024, 2048)

LEAST_GAIN: Final = 0.03
"""A plan that is not faster by more than this is not worth another setting, whatever the noise."""

FEWEST_ROUNDS: Final = 2
"""Of one round nobody knows how far the next would be from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan and how it runs the workload; ``speeds`` are tokens per second, one a round."""

    tuning: Tuning
    work: WorkPlan
    speeds: tuple[float, ...] = ()

    @property
    def speed(self) -> float:
        """The median."""
        return statistics.median(self.speeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """What was found for a variant.

    Attributes:
        entry: What is stored; the default plan where nothing was faster for sure.
        candidates: All plans measured, the default first.
        confirmed: The default and the fastest plan, measured again; empty where the default was fastest.
    """

    entry: TuningEntry
    candidates: tuple[Candidate, ...]
    confirmed: tuple[Candidate, ...]


def propose_tunings(cores: int) -> tuple[Tuning, ...]:
    """Return the grid: the default, then every token budget with threads by the rule, 1, 2, 4 and so on, and all."""
    powers = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    threads = [None, *powers, cores]
    grid = [Tuning(threads=number, max_batch_tokens=budget) for number in threads for budget in BUDGETS]
    return tuple(dict.fromkeys([Tuning(), *grid]))


def choose_candidates(
    tunings: Sequence[Tuning], lengths: Sequence[int], runner: Runner, cores: int
) -> tuple[Candidate, ...]:
    """Return the plans that run texts of these lengths differently: of those that run them alike the first."""
    found: dict[WorkPlan, Candidate] = {}
    for tuning in tunings:
        work = plan_work(lengths, runner, tuning, cores=cores)
        found.setdefault(work, Candidate(tuning=tuning, work=work))
    return tuple(found.values())


def is_faster(speeds: Sequence[float], default: Sequence[float]) -> bool:
    """Whether a plan is faster than the default by more than the noise.

    Its slowest round must beat the default's fastest, and its median the default's by more than ``LEAST_GAIN``. Of
    three rounds each, speeds that differ by chance alone are so ordered one time in twenty.
    """
    gain = statistics.median(speeds) / statistics.median(default) - 1.0
    return min(speeds) > max(default) and gain > LEAST_GAIN


def tune_variant(
    request: EngineRequest,
    manifest: Manifest,
    variant: str,
    workload: Workload,
    *,
    cpu: CpuInfo,
    rounds: int,
    timing: Timing,
    say: Say,
    run: Run = run_child,
) -> TuneResult:
    """Measure the plans of one variant on one workload.

    Raises:
        InputError: too few rounds, or every plan runs the workload alike.
        SessionError: a process failed.
    """
    if rounds < FEWEST_ROUNDS:
        raise InputError(f"--tune needs at least {FEWEST_ROUNDS} rounds to see the noise, got {rounds}")
    runner = build_runner(manifest.variant(variant), manifest.tokenization)
    candidates = choose_candidates(propose_tunings(cpu.num_cores), workload.lengths, runner, cpu.num_cores)
    if len(candidates) == 1:
        raise InputError(f"every plan runs {workload.name} alike on {cpu.num_cores} cores; tune on more or other texts")
    with scratch_job(request, [workload], timing) as empty:
        job = replace_struct(empty, engine=variant)
        measured = _take_turns(job, candidates, rounds, say, run)
        fastest = max(measured, key=lambda candidate: candidate.speed)
        pair = () if fastest is measured[0] else (measured[0], fastest)
        confirmed = _take_turns(job, pair, rounds, say, run)
    default, best = confirmed or (measured[0], measured[0])
    chosen = best if is_faster(best.speeds, default.speeds) else default
    entry = TuningEntry(
        cpu=cpu.model,
        cores=cpu.num_cores,
        variant=variant,
        threads=chosen.tuning.threads,
        max_batch_tokens=chosen.tuning.max_batch_tokens,
        workload=workload.name,
        tokens_per_s=round(chosen.speed, 1),
        default_tokens_per_s=round(default.speed, 1),
        rounds=rounds,
        poolgraph_version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    return TuneResult(entry=entry, candidates=measured, confirmed=confirmed)


def _take_turns(job: Job, candidates: Sequence[Candidate], rounds: int, say: Say, run: Run) -> tuple[Candidate, ...]:
    """Measure each plan once a round, in turn."""
    speeds: list[list[float]] = [[] for _ in candidates]
    for number in range(rounds):
        for place, candidate in enumerate(candidates):
            say(f"[{number * len(candidates) + place + 1}/{rounds * len(candidates)}] {_name(candidate)}")
            line = run(replace_struct(job, request=replace(job.request, tuning=candidate.tuning)))
            if line.error is not None:
                raise SessionError(f"{job.engine} failed with {_name(candidate)}: {line.error}")
            [measured] = line.workloads.values()
            speeds[place].append(measured.tokens_per_s)
    return tuple(replace(it, speeds=tuple(own)) for it, own in zip(candidates, speeds, strict=True))


def _name(candidate: Candidate) -> str:
    work = candidate.work
    return f"{work.runs} x {work.threads} threads, batches of {candidate.tuning.max_batch_tokens} tokens"


def format_tune(result: TuneResult) -> str:
    """Write what was measured and what was stored."""
    entry = result.entry
    rows = [_format_row("", candidate, result.candidates[0]) for candidate in result.candidates]
    rows += [_format_row("again", candidate, result.confirmed[0]) for candidate in result.confirmed]
    header = ("", "runs", "threads", "batch tokens", "tokens/s", "slowest", "fastest", "share")
    gain = entry.tokens_per_s / entry.default_tokens_per_s
    verdict = (
        "the default plan stays: nothing was faster by more than the noise"
        if entry.tuning == Tuning()
        else f"{gain:.2f} times the default's speed"
    )
    return f"{entry.variant} on {entry.workload}, {entry.cores} cores\n{format_table(header, rows)}\n{verdict}"


def _format_row(mark: str, candidate: Candidate, default: Candidate) -> tuple[str, ...]:
    return (
        mark,
        str(candidate.work.runs),
        str(candidate.work.threads),
        str(candidate.tuning.max_batch_tokens),
        f"{candidate.speed:.0f}",
        f"{min(candidate.speeds):.0f}",
        f"{max(candidate.speeds):.0f}",
        f"{candidate.speed / default.speed:.2f}",
    )
