"""What a benchmark found: records, medians over rounds, and the table for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from poolgraph.runtime.bench_child import Line, Measured
from poolgraph.runtime.bench_timing import Timing
from poolgraph.runtime.inspect import format_table


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen part of the results."""


class Fidelity(_Record, frozen=True, kw_only=True):
    """Answers against the reference's: ``max_difference`` is a share of the largest absolute reference answer."""

    mean_cosine: float
    min_cosine: float
    max_difference: float


class WorkloadResult(_Record, frozen=True, kw_only=True):
    """An engine on a workload: medians over rounds.

    Attributes:
        tokens_per_s: Tokens from strings to answers in a second.
        texts_per_s: Texts, or pairs.
        share: Speed as a share of the first engine's; None where that failed.
        rounds_s: Seconds of one call, the median of each round.
        repeats: Calls timed in each round.
        batch_sizes: Batch size that was fastest in each round, None of engines that choose themselves.
        fidelity: Against the reference.
    """

    tokens_per_s: float
    texts_per_s: float
    share: float | None
    rounds_s: tuple[float, ...]
    repeats: tuple[int, ...]
    batch_sizes: tuple[int | None, ...]
    fidelity: Fidelity


class EngineResult(_Record, frozen=True, kw_only=True):
    """An engine: its medians, or the error that it ended with."""

    name: str
    label: str = ""
    error: str | None = None
    load_s: float | None = None
    peak_rss_mib: int | None = None
    workloads: dict[str, WorkloadResult] = {}


class WorkloadShape(_Record, frozen=True, kw_only=True):
    """What a workload was; ``digest`` is of its texts."""

    name: str
    num_texts: int
    num_tokens: int
    digest: str


class BenchResult(_Record, frozen=True, kw_only=True):
    """Everything.

    Attributes:
        artifact: Name of the artifact's folder.
        model: What it was made from.
        task: A key of ``BENCH_TASKS``.
        measure: How answers are compared, ``cosine`` or ``difference``.
        reference: The engine whose answers the others' are compared with.
        date: The day, UTC.
        rounds: Processes an engine.
        timing: How long each repeated a workload.
        machine: Processor, memory and system.
        versions: Packages.
        workloads: The workloads.
        engines: The engines, in the order in which they took turns.
    """

    artifact: str
    model: str
    task: str
    measure: Literal["cosine", "difference"]
    reference: str
    date: str
    rounds: int
    timing: Timing
    machine: dict[str, Any]
    versions: dict[str, str]
    workloads: tuple[WorkloadShape, ...]
    engines: tuple[EngineResult, ...]


def summarize(
    lines: Mapping[str, Sequence[Line]], fidelities: Mapping[str, Mapping[str, Fidelity] | str]
) -> tuple[EngineResult, ...]:
    """Reduce each engine's lines, one a round, to medians; one that failed in any round is its error.

    Args:
        lines: Lines by engine; the first engine is what shares are of.
        fidelities: Fidelity by engine and workload, or what is wrong with the engine's answers.
    """
    first = next(iter(lines.values()))
    speeds = {} if any(line.error for line in first) else _median_speeds(first)
    return tuple(_summarize_engine(name, rows, fidelities[name], speeds) for name, rows in lines.items())


def _summarize_engine(
    name: str, lines: Sequence[Line], fidelity: Mapping[str, Fidelity] | str, speeds: Mapping[str, float]
) -> EngineResult:
    errors = [line.error for line in lines if line.error] + ([fidelity] if isinstance(fidelity, str) else [])
    if errors or isinstance(fidelity, str):
        label = next((line.label for line in lines if line.label), name)
        return EngineResult(name=name, label=label, error=errors[0])
    return EngineResult(
        name=name,
        label=lines[0].label,
        load_s=round(statistics.median(line.load_s for line in lines), 3),
        peak_rss_mib=round(statistics.median(line.peak_rss_bytes for line in lines) / 2**20),
        workloads={
            workload: _summarize_workload(
                [line.workloads[workload] for line in lines], fidelity[workload], speeds.get(workload)
            )
            for workload in lines[0].workloads
        },
    )


def _summarize_workload(rows: Sequence[Measured], fidelity: Fidelity, first: float | None) -> WorkloadResult:
    speed = statistics.median(row.tokens_per_s for row in rows)
    return WorkloadResult(
        tokens_per_s=speed,
        texts_per_s=statistics.median(row.texts_per_s for row in rows),
        share=None if first is None else speed / first,
        rounds_s=tuple(row.median_s for row in rows),
        repeats=tuple(row.repeats for row in rows),
        batch_sizes=tuple(row.batch_size for row in rows),
        fidelity=fidelity,
    )


def _median_speeds(lines: Sequence[Line]) -> dict[str, float]:
    return {
        workload: statistics.median(line.workloads[workload].tokens_per_s for line in lines)
        for workload in lines[0].workloads
    }


def format_bench(result: BenchResult) -> str:
    """Write the tables: speed and fidelity of each engine on each workload, then what each engine takes."""
    header = ("workload", "engine", "tokens/s", "texts/s", "share", *_FIDELITY_COLUMNS[result.measure])
    good = [engine for engine in result.engines if engine.error is None]
    speeds = [
        (shape.name, engine.name, *_format_speed(engine.workloads[shape.name], result.measure))
        for shape in result.workloads
        for engine in good
    ]
    needs = [(it.name, f"{it.load_s:.2f}", str(it.peak_rss_mib), it.label) for it in good]
    failures = [f"{engine.name} failed: {engine.error}" for engine in result.engines if engine.error is not None]
    tables = [
        format_table(header, speeds),
        format_table(("engine", "load s", "peak MiB", "what"), needs),
    ]
    return "\n\n".join([*_describe(result), *(tables if good else []), *failures])


_FIDELITY_COLUMNS: dict[str, tuple[str, ...]] = {"cosine": ("mean cosine", "min cosine"), "difference": ("max diff",)}


def _format_speed(row: WorkloadResult, measure: str) -> tuple[str, ...]:
    share = "" if row.share is None else f"{row.share:.2f}"
    fidelity = row.fidelity
    cells = {
        "cosine": (f"{fidelity.mean_cosine:.6f}", f"{fidelity.min_cosine:.6f}"),
        "difference": (f"{fidelity.max_difference:.1e}",),
    }
    return f"{row.tokens_per_s:.0f}", f"{row.texts_per_s:.1f}", share, *cells[measure]


def _describe(result: BenchResult) -> list[str]:
    machine = result.machine
    shapes = "; ".join(f"{it.name}: {it.num_texts} texts, {it.num_tokens} tokens" for it in result.workloads)
    return [
        f"{result.artifact} ({result.model}), task {result.task}, on {machine['cpu']}, {machine['cores']} cores\n"
        f"{shapes}\n"
        f"Medians of {result.rounds} rounds, a process an engine and round; answers against those of {result.reference}"
    ]
