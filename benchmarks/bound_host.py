"""What a call costs beside the graph where buckets run (a GPU): planning, buffers, a thread's wake-up, the answer.

No GPU is needed: buffers lie in the processor's memory, and what would run on the device does nothing. Copies to and
from a device come on top.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final
from unittest.mock import patch

import numpy as np
from soak_models import TESTS

from poolgraph.runtime.bound_executor import BoundExecutor
from poolgraph.runtime.bound_slot import BoundSlot
from poolgraph.runtime.bucket_planner import BucketBudget, plan_buckets
from poolgraph.runtime.tokenizer import EncodedText

MAX_MODEL_LEN: Final = 512
_DRAW = np.random.default_rng(0)

WORKLOADS: Final[Mapping[str, list[int]]] = MappingProxyType(
    {
        "1x16": [16],
        "32x16": [16] * 32,
        "64x128": [128] * 64,
        "32x512": [512] * 32,
        "256 mixed": np.clip(_DRAW.lognormal(4, 1, 256), 3, MAX_MODEL_LEN).astype(int).tolist(),
        "1,024 short": _DRAW.integers(6, 28, 1024).tolist(),
        "4,096 mixed": np.clip(_DRAW.lognormal(4, 1, 4096), 3, MAX_MODEL_LEN).astype(int).tolist(),
        "4,096 short": _DRAW.integers(6, 28, 4096).tolist(),
    }
)
"""Lengths of the texts of a call."""


def time_calls(layout: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of a call by workload."""
    sys.path.insert(0, str(TESTS))
    from bound_executors import build_executor  # type: ignore[import-not-found]

    budget = BucketBudget(max_model_len=MAX_MODEL_LEN)
    with tempfile.TemporaryDirectory() as folder:
        place = (Path(folder), layout, ("CPUExecutionProvider", "cpu"), plan_buckets(budget, layout))
        executor = build_executor(*place)
        with patch.object(BoundSlot, "run", _answer_zeros):
            executor.warm_up("sequence")
        with patch.object(BoundSlot, "run", lambda slot: None):
            medians = {name: _time_calls(executor, lengths, repeats) for name, lengths in WORKLOADS.items()}
        executor.close()
    return medians


def _answer_zeros(slot: BoundSlot) -> None:
    """Stand in for the first run: what nothing was written to may be NaN, which is refused."""
    slot._output.update_inplace(np.zeros(slot._output.shape(), dtype=np.float32))


def _time_calls(executor: BoundExecutor, lengths: Sequence[int], repeats: int) -> float:
    texts = [EncodedText(input_ids=_DRAW.integers(1, 60, length), token_type_ids=None) for length in lengths]
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        executor.run_sequence(texts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, a row a workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args(arguments).repeats
    os.environ["HF_HUB_OFFLINE"] = "1"
    columns = {layout: time_calls(layout, repeats) for layout in ("padded", "packed")}
    print("| texts | " + " | ".join(f"{layout}, ms" for layout in columns) + " |\n|---|---|---|")
    for name in WORKLOADS:
        print(f"| {name} | " + " | ".join(f"{column[name] * 1e3:.2f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
