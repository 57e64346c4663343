"""A benchmark of one artifact: engines in turn, each in a process of its own, and their answers compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from msgspec.structs import replace

from poolgraph.errors import SessionError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.bench_child import Job, Line, load_answers, run_child
from poolgraph.runtime.bench_engines import EngineRequest, choose_reference
from poolgraph.runtime.bench_machine import describe_machine, read_versions
from poolgraph.runtime.bench_results import BenchResult, Fidelity, WorkloadShape, summarize
from poolgraph.runtime.bench_tasks import BENCH_TASKS
from poolgraph.runtime.bench_timing import Timing
from poolgraph.runtime.bench_workloads import Workload, save_workloads
from poolgraph.runtime.compare import Threshold, compare_answers

Say: TypeAlias = Callable[[str], None]
"""Told of each process as it begins, and of what fails."""

Run: TypeAlias = Callable[[Job], Line]
"""Runs a job in a process of its own."""

_ANY: Final = Threshold(min_cosine=-1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is measured, and how long.

    Attributes:
        request: The artifact, the task and what engines are loaded with.
        manifest: The artifact's.
        engines: Names of variants and peers; the first is what shares are of.
        workloads: The workloads.
        rounds: Processes an engine.
        timing: How long each repeats a workload.
    """

    request: EngineRequest
    manifest: Manifest
    engines: tuple[str, ...]
    workloads: tuple[Workload, ...]
    rounds: int
    timing: Timing


def plan_turns(engines: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Take the engines in turn, round after round, so that a slow minute of the machine falls on all of them alike."""
    return [(number, engine) for number in range(rounds) for engine in engines]


def run_bench(plan: BenchPlan, *, say: Say, run: Run = run_child) -> BenchResult:
    """Measure and compare.

    Raises:
        SessionError: the reference failed, so that there is nothing to compare with.
    """
    machine = describe_machine()
    reference = choose_reference(plan.engines, plan.manifest)
    with scratch_job(plan.request, plan.workloads, plan.timing) as job:
        folder = job.workloads.parent
        if reference not in plan.engines:
            _answer_once(replace(job, engine=reference, answers=folder / reference, timed=False), say, run)
        lines = _take_turns(plan, job, say, run)
        fidelities = {
            engine: _compare(folder, engine, reference, plan.workloads) if lines[engine][0].error is None else ""
            for engine in plan.engines
        }
    return BenchResult(
        artifact=plan.request.directory.resolve().name,
        model=plan.manifest.source.model,
        task=plan.request.task,
        measure=BENCH_TASKS[plan.request.task].measure,
        reference=reference,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        rounds=plan.rounds,
        timing=plan.timing,
        machine=machine,
        versions=read_versions(),
        workloads=tuple(_describe_workload(workload) for workload in plan.workloads),
        engines=summarize(lines, fidelities),
    )


@contextmanager
def scratch_job(request: EngineRequest, workloads: Sequence[Workload], timing: Timing) -> Iterator[Job]:
    """Yield a job without an engine whose workloads lie in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="poolgraph-bench-") as folder:
        file = Path(folder) / "workloads.json"
        save_workloads(file, workloads)
        yield Job(engine="", request=request, workloads=file, timing=timing)


def _answer_once(job: Job, say: Say, run: Run) -> None:
    say(f"answers of the reference, {job.engine}")
    line = run(job)
    if line.error is not None:
        raise SessionError(f"the reference {job.engine} failed: {line.error}")


def _take_turns(plan: BenchPlan, job: Job, say: Say, run: Run) -> dict[str, list[Line]]:
    """Run every turn; an engine that failed is not run again. The first round stores the answers."""
    lines: dict[str, list[Line]] = {engine: [] for engine in plan.engines}
    turns = plan_turns(plan.engines, plan.rounds)
    for place, (number, engine) in enumerate(turns, start=1):
        if any(line.error is not None for line in lines[engine]):
            continue
        say(f"[{place}/{len(turns)}] round {number + 1}, {engine}")
        answers = job.workloads.parent / engine if number == 0 else None
        line = run(replace(job, engine=engine, answers=answers))
        if line.error is not None:
            say(f"  {engine} failed: {line.error}")
        lines[engine].append(line)
    return lines


def _compare(folder: Path, engine: str, reference: str, workloads: Sequence[Workload]) -> Mapping[str, Fidelity] | str:
    """Return the fidelity on each workload, or what is wrong with the answers."""
    found: dict[str, Fidelity] = {}
    for workload in workloads:
        file = f"{workload.name}.npz"
        if not (folder / reference / file).is_file():
            return f"there is nothing to compare with, since {reference} failed"
        expected, answers = load_answers(folder / reference / file), load_answers(folder / engine / file)
        if [row.shape for row in expected] != [row.shape for row in answers]:
            return f"the answers to {workload.name} have other shapes than those of {reference}"
        kept = [index for index, row in enumerate(expected) if row.size]  # a document may have no vector
        if not kept:
            return f"the answers to {workload.name} are empty"
        comparison = compare_answers([expected[index] for index in kept], [answers[index] for index in kept], _ANY)
        found[workload.name] = Fidelity(
            mean_cosine=comparison.mean_cosine,
            min_cosine=comparison.min_cosine,
            max_difference=comparison.max_difference,
        )
    return found


def _describe_workload(workload: Workload) -> WorkloadShape:
    return WorkloadShape(
        name=workload.name,
        num_texts=len(workload.texts),
        num_tokens=workload.num_tokens,
        digest=workload.digest[:16],
    )
