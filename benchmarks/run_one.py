"""Measure one engine on one model in this process and print one JSON line.

``--prepare`` makes the engine's cached files instead, and ``--write-reference`` stores its vectors as the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, EngineRow
from models import MODELS, model_paths
from numpy.typing import NDArray
from workloads import WORKLOAD_NAMES

from poolgraph.runtime.bench_machine import read_peak_rss_bytes
from poolgraph.runtime.bench_timing import Timing, distinct_batch_sizes, time_batch_sizes
from poolgraph.runtime.bench_workloads import Workload, load_workloads


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
    sizes = distinct_batch_sizes(row.batch_sizes, len(texts))
    started = time.perf_counter()
    cosines = compare_rows(row.embed(engine, texts, sizes[0]), reference)
    warm_up_s = time.perf_counter() - started
    timed = time_batch_sizes(lambda size: row.embed(engine, texts, size), sizes, timing, warm_up_s)
    return Measurement(
        median_s=timed.median_s,
        repeats=timed.repeats,
        batch_size=timed.batch_size,
        texts_per_s=len(texts) / timed.median_s,
        tokens_per_s=workload.num_tokens / timed.median_s,
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
            w.name: row.embed(engine, list(w.texts), distinct_batch_sizes(row.batch_sizes, len(w.texts))[0])
            for w in workloads
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
