"""One engine measured in a process of its own: ``python -m poolgraph.runtime.bench_child`` with a ``Job`` on its input.

The last line of its output is a ``Line``. The parent keeps free of what engines import.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.bench_engines import Engine, EngineRequest, load_engine
from poolgraph.runtime.bench_machine import hide_paths, read_peak_rss_bytes
from poolgraph.runtime.bench_tasks import Answers
from poolgraph.runtime.bench_timing import Timing, distinct_batch_sizes, time_batch_sizes
from poolgraph.runtime.bench_workloads import Workload, load_workloads

CHILD_TIMEOUT_S: Final = 1800


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a child does.

    Attributes:
        engine: A variant's name, or a key of ``PEERS``.
        request: What the engine is loaded for.
        workloads: File of the workloads.
        timing: How long each is repeated.
        answers: Folder for the answers, a file a workload; None does not store them.
        timed: Whether anything is timed; else only the answers are stored.
        started: When the process was started, by the clock that all processes share.
    """

    engine: str
    request: EngineRequest
    workloads: Path
    timing: Timing
    answers: Path | None = None
    timed: bool = True
    started: float = 0.0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's speed on a workload in one process."""

    median_s: float
    repeats: int
    batch_size: int | None
    texts_per_s: float
    tokens_per_s: float


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What a child found: ``error``, or everything else.

    ``load_s`` is from the start of the process to the first answer, that of a lone text.
    """

    engine: str
    label: str = ""
    error: str | None = None
    load_s: float = 0.0
    peak_rss_bytes: int = 0
    workloads: dict[str, Measured] = {}


def run_job(job: Job) -> Line:
    """Measure in this process."""
    workloads = load_workloads(job.workloads)
    engine = load_engine(job.engine, job.request)
    engine.ask(_first_input(workloads[0]), distinct_batch_sizes(engine.batch_sizes, 1)[0])
    load_s = time.monotonic() - job.started
    measured = {workload.name: _run_workload(engine, workload, job) for workload in workloads}
    return Line(
        engine=job.engine,
        label=engine.label,
        load_s=load_s,
        peak_rss_bytes=read_peak_rss_bytes(),
        workloads={name: row for name, row in measured.items() if row is not None},
    )


def _first_input(workload: Workload) -> Workload:
    return replace(workload, texts=workload.texts[:1], queries=workload.queries[:1], lengths=workload.lengths[:1])


def _run_workload(engine: Engine, workload: Workload, job: Job) -> Measured | None:
    """Answer a workload once, for the answers and as a warm-up, then time it from strings to answers."""
    sizes = distinct_batch_sizes(engine.batch_sizes, len(workload.texts))
    started = time.perf_counter()
    answers = engine.ask(workload, sizes[0])
    warm_up_s = time.perf_counter() - started
    check_finite(answers)
    if job.answers is not None:
        save_answers(job.answers / f"{workload.name}.npz", answers)
    del answers
    if not job.timed:
        return None
    timed = time_batch_sizes(partial(engine.ask, workload), sizes, job.timing, warm_up_s)
    return Measured(
        median_s=timed.median_s,
        repeats=timed.repeats,
        batch_size=timed.batch_size,
        texts_per_s=len(workload.texts) / timed.median_s,
        tokens_per_s=workload.num_tokens / timed.median_s,
    )


def check_finite(answers: Answers) -> None:
    """Raise ValueError if an answer holds NaN or infinity."""
    broken = sum(int((~np.isfinite(answer)).sum()) for answer in answers)
    if broken:
        raise ValueError(f"{broken} numbers of the answers are NaN or infinite")


def save_answers(path: Path, answers: Answers) -> None:
    """Store answers one after another, with their shapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [np.asarray(answer, dtype=np.float32) for answer in answers]
    shapes = np.array([(*row.shape, *[-1] * (2 - row.ndim)) for row in rows], dtype=np.int64)
    np.savez(path, values=np.concatenate([row.ravel() for row in rows]), shapes=shapes)


def load_answers(path: Path) -> list[NDArray[np.float32]]:
    """Read what ``save_answers`` wrote."""
    with np.load(path) as stored:
        values, shapes = stored["values"], stored["shapes"]
    sizes = [tuple(int(size) for size in shape if size >= 0) for shape in shapes]
    ends = np.cumsum([int(np.prod(size)) for size in sizes])
    parts = np.split(values, ends[:-1])
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def encode_job(job: Job) -> bytes:
    """Encode a job for a child's input."""
    return msgspec.json.encode(job, enc_hook=str)


def decode_job(data: bytes) -> Job:
    """Read what ``encode_job`` wrote."""
    return msgspec.json.decode(data, type=Job, dec_hook=lambda _kind, value: Path(value))


def run_child(job: Job) -> Line:
    """Run a job in a process of its own; whatever fails there is a line with its message."""
    command = [sys.executable, "-m", __name__]
    job = msgspec.structs.replace(job, started=time.monotonic())
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours, and no shell reads it
            command, input=encode_job(job), capture_output=True, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Line(engine=job.engine, error=f"no answer within {CHILD_TIMEOUT_S} s")
    return read_line(job.engine, done.returncode, done.stdout, done.stderr)


def read_line(engine: str, code: int, stdout: bytes, stderr: bytes) -> Line:
    """Read a child's output; one that was killed left none, and is reported by its exit code."""
    lines = _lines(stdout)
    with contextlib.suppress(msgspec.MsgspecError):
        if lines:
            return msgspec.json.decode(lines[-1], type=Line)
    said = _lines(stderr)
    return Line(engine=engine, error=hide_paths(f"exit code {code}{f': {said[-1]}' if said else ''}"))


def _lines(output: bytes) -> Sequence[str]:
    return [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]


def main() -> None:
    """Read a job from standard input, run it and print its line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")  # cut texts and the like are no news here
    job = decode_job(sys.stdin.buffer.read())
    try:
        line = run_job(job)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        line = Line(engine=job.engine, error=hide_paths(message))
    sys.stdout.write("\n" + msgspec.json.encode(line).decode() + "\n")


if __name__ == "__main__":
    main()
