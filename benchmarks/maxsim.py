"""MaxSim of one query against many documents: poolgraph's numpy against torch's batched einsum, on the same cores.

Each engine runs in a process of its own, round after round in turn. Times are medians over the rounds of each process'
median; memory is how far its largest resident size goes beyond that once the vectors are there, in the worst round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from poolgraph.runtime.bench_machine import describe_machine, read_peak_rss_bytes
from poolgraph.runtime.cpu import count_cores

Rows = NDArray[np.float32]
Score = Callable[[], Any]

REFERENCE = "torch"
REPEATS = 5
CHILD_TIMEOUT_S = 600


def prepare_torch(query: Rows, documents: Rows) -> Score:
    """One einsum over all documents, as late interaction is usually written."""
    import torch

    torch.set_num_threads(count_cores())
    queries, stacked = torch.from_numpy(query), torch.from_numpy(documents)
    return lambda: torch.einsum("qd,ntd->nqt", queries, stacked).amax(-1).sum(-1).numpy()


def prepare_stacked(query: Rows, documents: Rows) -> Score:
    """All documents in one array."""
    from poolgraph.runtime.maxsim import maxsim

    return lambda: maxsim(query, documents)


def prepare_listed(query: Rows, documents: Rows) -> Score:
    """A list of one array a document."""
    from poolgraph.runtime.maxsim import maxsim

    listed = list(documents)
    return lambda: maxsim(query, listed)


ENGINES: Mapping[str, Callable[[Rows, Rows], Score]] = {
    REFERENCE: prepare_torch,
    "poolgraph, one array": prepare_stacked,
    "poolgraph, list of arrays": prepare_listed,
}


def run_engine(engine: str, shape: Sequence[int]) -> dict[str, Any]:
    """Measure one engine in this process; ``shape`` is query vectors, documents, vectors of each, size."""
    num_query_vectors, num_documents, num_vectors, size = shape
    generator = np.random.default_rng(0)
    query = generator.standard_normal((num_query_vectors, size), dtype=np.float32)
    documents = generator.standard_normal((num_documents, num_vectors, size), dtype=np.float32)
    score = ENGINES[engine](query, documents)
    resident = psutil.Process().memory_info().rss
    scores = score()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - start)
    return {
        "median_s": statistics.median(seconds),
        "extra_mib": (read_peak_rss_bytes() - resident) / 2**20,
        "checksum": float(np.asarray(scores, dtype=np.float64).sum()),
    }


def run_child(engine: str, shape: Sequence[int]) -> dict[str, Any]:
    """Measure one engine in a process of its own."""
    command = [sys.executable, __file__, "--engine", engine, "--shape", *map(str, shape)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CHILD_TIMEOUT_S)
    line: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return line


def summarize(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Reduce the rounds to one row an engine, with its speed relative to the reference's.

    Raises:
        ValueError: the engines' scores differ.
    """
    rows = {
        engine: {
            "median_s": statistics.median(line[engine]["median_s"] for line in rounds),
            "extra_mib": max(line[engine]["extra_mib"] for line in rounds),
            "checksum": rounds[0][engine]["checksum"],
        }
        for engine in rounds[0]
    }
    reference = rows[REFERENCE]
    for engine, row in rows.items():
        if not np.isclose(row["checksum"], reference["checksum"], rtol=1e-6):
            raise ValueError(f"{engine} adds up to {row['checksum']}, {REFERENCE} to {reference['checksum']}")
        row["times_as_fast"] = reference["median_s"] / row["median_s"]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all engines, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=4, default=[32, 10_000, 200, 128], metavar="N")
    parser.add_argument("--engine", choices=ENGINES, help="measure this one alone and print a line of JSON")
    options = parser.parse_args(argv)
    if options.engine:
        print(json.dumps(run_engine(options.engine, options.shape)))
        return
    rounds = [{engine: run_child(engine, options.shape) for engine in ENGINES} for _ in range(options.rounds)]
    print(f"{describe_machine()}; load {os.getloadavg()}; shape {options.shape}; {options.rounds} rounds")
    for engine, row in summarize(rounds).items():
        print(
            f"{engine:26} {row['median_s']:.3f} s, {row['times_as_fast']:.2f} times {REFERENCE}, "
            f"{row['extra_mib']:,.0f} MiB beyond the vectors"
        )


if __name__ == "__main__":
    main()
