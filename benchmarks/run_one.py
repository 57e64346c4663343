"""Measure one engine on one model in this process and print one JSON line.

``--prepare`` makes the engine's cached files instead, and ``--write-reference`` stores its vectors as the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, EngineRow
from machine import read_peak_rss_bytes
from models import MODELS, model_paths
from numpy.typing import NDArray
from workloads import WORKLOAD_NAMES, Workload, load_workloads

WARM_UP_CALLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a workload is repeated: at least ``min_s`` and ``min_repeats``, but nothing starts after ``max_s``."""

    min_s: float = 1.5
    max_s: float = 5.0
    min_repeats: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One engine on one workload; cosines are to the reference's vectors, ``batch_size`` is the faster one tried."""

    median_s: float
    repeats: int
    batch_size: int | None
    texts_per_s: float
    tokens_per_s: float
    min_cosine: float
    mean_cosine: float


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


def compare_rows(answer: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each row with the reference's: ``(num_texts, size)`` twice to ``(num_texts,)``."""
    if answer.shape != reference.shape:
        raise ValueError(f"the answer has shape {answer.shape}, the reference {reference.shape}")
    if not np.isfinite(answer).all():
        raise ValueError(f"{int((~np.isfinite(answer)).sum())} numbers of the answer are NaN or infinite")
    left, right = answer.astype(np.float64), reference.astype(np.float64)
    return (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def load_reference(path: Path, workloads: Sequence[Workload]) -> dict[str, NDArray[np.float32]]:
    """Read the reference's vectors; those of other texts than today's are refused."""
    with np.load(path) as stored:
        for workload in workloads:
            if str(stored[f"{workload.name}.digest"]) != workload.digest:
                raise ValueError(f"{path.name} belongs to other texts than workload {workload.name}; remove it")
        return {workload.name: stored[workload.name] for workload in workloads}


def save_reference(path: Path, workloads: Sequence[Workload], vectors: dict[str, NDArray[np.float32]]) -> None:
    """Store vectors with the digests of the texts that they belong to."""
    digests = {f"{workload.name}.digest": np.array(workload.digest) for workload in workloads}
    np.savez(path, **vectors, **digests)


def run_workload(
    row: EngineRow, engine: Any, workload: Workload, timing: Timing, reference: NDArray[np.float32]
) -> Measurement:
    """Check the answers to one workload, then time it from strings to vectors with the engine's best batch size."""
    texts = list(workload.texts)
    choices = row.embed_options(len(texts))
    started = time.perf_counter()
    cosines = compare_rows(row.adapter.embed(engine, texts, **choices[0]), reference)
    warm_up_s = time.perf_counter() - started
    trials = [
        (measure(partial(row.adapter.embed, engine, texts, **choice), timing, warm_up_s), choice) for choice in choices
    ]
    seconds, choice = min(trials, key=lambda trial: statistics.median(trial[0]))
    median_s = statistics.median(seconds)
    return Measurement(
        median_s=median_s,
        repeats=len(seconds),
        batch_size=choice.get("batch_size"),
        texts_per_s=len(texts) / median_s,
        tokens_per_s=workload.num_tokens / median_s,
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
    )


def run_engine(options: argparse.Namespace) -> dict[str, Any]:
    """Load the engine and do what the options ask; return the JSON line's value."""
    row, paths = ENGINES[options.engine], model_paths(options.model)
    workloads = [w for w in load_workloads(options.workloads_file) if w.name in options.workloads]
    started = time.perf_counter()
    engine = row.adapter.load(paths.checkpoint_dir, paths.artifact_dir, paths.cache_dir, **row.options)
    result: dict[str, Any] = {
        "engine": options.engine,
        "label": row.label,
        "model": options.model,
        "load_s": time.perf_counter() - started,
    }
    if options.write_reference:
        vectors = {
            w.name: row.adapter.embed(engine, list(w.texts), **row.embed_options(len(w.texts))[0]) for w in workloads
        }
        save_reference(options.write_reference, workloads, vectors)
    elif options.reference:
        references = load_reference(options.reference, workloads)
        timing = Timing(min_s=options.min_seconds, max_s=options.max_seconds)
        result["workloads"] = {
            w.name: asdict(run_workload(row, engine, w, timing, references[w.name])) for w in workloads
        }
    return result | {"peak_rss_bytes": read_peak_rss_bytes()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--workloads", type=lambda text: text.split(","), default=list(WORKLOAD_NAMES))
    parser.add_argument("--workloads-file", type=Path, required=True, help="the texts, as the harness writes them")
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--reference", type=Path, help="measure, and compare with the vectors stored there")
    job.add_argument("--write-reference", type=Path, help="store this engine's vectors there")
    job.add_argument("--prepare", action="store_true", help="only load, which fills the engine's cache")
    parser.add_argument("--min-seconds", type=float, default=Timing.min_s)
    parser.add_argument("--max-seconds", type=float, default=Timing.max_s)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = build_parser().parse_args(arguments)
    print(json.dumps(run_engine(options)), flush=True)


if __name__ == "__main__":
    main()
