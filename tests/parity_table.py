"""Differences from oracles: how large they are, and the table of them that the environment may ask for.

The largest difference of each row is listed as JSON in the file that POOLGRAPH_PARITY_TABLE names.
"""

from __future__ import annotations

import json
import os
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from poolgraph.export.probes import PROBE_SENTENCES

TOLERANCE = 1e-4
"""Of probabilities, scores and rewards in float32."""

TABLE_FILE = "POOLGRAPH_PARITY_TABLE"
WORDS = [word for sentence in PROBE_SENTENCES for word in sentence.split()]


def record(task: str, head: str, oracle: str, difference: float) -> None:
    """Note a row of the table, in a file that several workers may write."""
    file = os.environ.get(TABLE_FILE)
    if not file:
        return
    with FileLock(f"{file}.lock"):
        rows = json.loads(Path(file).read_text()) if Path(file).exists() else []
        rows = [row for row in rows if (row["task"], row["head"], row["oracle"]) != (task, head, oracle)]
        row = {"task": task, "head": head, "oracle": oracle, "largest_difference": difference}
        Path(file).write_text(json.dumps(sorted([*rows, row], key=str), indent=1))


def make_texts(count: Callable[[list[str]], list[int]], limit: int, *, tag: str = "") -> list[str]:
    """Some 25 texts of random words, from the empty one to one of ``limit`` tokens, each word followed by ``tag``."""
    source = random.Random(11)
    texts = ["", "a", "waves"]
    for target in [2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 19, 21, 23, 25, 27, 29, 31, 32, limit, limit]:
        words = [f"{source.choice(WORDS)}{tag}" for _ in range(target)]

        def length(number: int, words: list[str] = words) -> int:
            return count([" ".join(words[:number])])[0]

        fitting = bisect_right(range(target + 1), min(target, limit), key=length)
        texts.append(" ".join(words[: max(0, fitting - 1)]))
    filled = texts[-1]
    while count([f"{filled} a"])[0] <= limit:
        filled += " a"
    return [*texts, filled]


def largest_difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the largest difference of answers of equal shapes."""
    assert len(expected) == len(found)
    assert [row.shape for row in expected] == [np.asarray(row).shape for row in found]
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(expected, found, strict=True))
