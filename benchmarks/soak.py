"""Does memory stay flat? Many calls with a random number of texts of random lengths, in one process.

    .venv/bin/python benchmarks/soak.py DIR [--calls 20000] [--warm-up 1000]

Prints and writes (``results/soak.json``) the resident memory after the warm-up, at intervals and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from poolgraph import PoolingModel
from poolgraph.runtime.bench_machine import describe_machine, read_versions

RESULTS = Path(__file__).resolve().parent / "results" / "soak.json"
WORDS = ("one", "two", "three", "people", "time", "water", "house", "year", "before", "after", "great", "small")
"""Each is one token of BERT's vocabulary, so that a text's length is known."""
INTERVALS = 20


def soak(model: PoolingModel, calls: int, warm_up: int, longest: int) -> list[dict[str, float]]:
    """Embed a text of random length a call, and note the resident memory at intervals."""
    process, draw = psutil.Process(), random.Random(0)
    notes, started = [], time.perf_counter()
    marks = {warm_up, *(calls * step // INTERVALS for step in range(1, INTERVALS + 1))}
    for call in range(1, calls + 1):
        model.embed(" ".join(draw.choices(WORDS, k=max(1, draw.randint(1, longest) - 2))), truncate=True)
        if call in marks and call >= warm_up:
            rss = process.memory_info().rss
            notes.append({"calls": call, "rss_mib": rss / 2**20, "seconds": time.perf_counter() - started})
            print(f"{call:>8} calls: {rss / 2**20:8.1f} MiB", flush=True)
    return notes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=1_000)
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with PoolingModel.load(options.artifact, precision=options.precision) as model:
        longest = model.manifest.limits.max_model_len
        notes = soak(model, options.calls, options.warm_up, longest)
        variant = model.variant.name
    growth = notes[-1]["rss_mib"] / notes[0]["rss_mib"]
    highest = max(note["rss_mib"] for note in notes) / notes[0]["rss_mib"]
    result: dict[str, Any] = {"machine": describe_machine(), "versions": read_versions(), "variant": variant}
    result |= {"longest": longest, "growth": growth, "highest": highest, "notes": notes}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{variant}: {growth:.3f} times the memory after {options.warm_up} calls, {highest:.3f} at most")


if __name__ == "__main__":
    main()
