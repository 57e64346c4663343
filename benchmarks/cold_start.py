"""How long until the first answer: a fresh process imports poolgraph, loads an artifact and embeds one text.

.venv/bin/python benchmarks/cold_start.py DIR [--rounds 11]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CHILD = """
import sys, time
from poolgraph import PoolingModel
model = PoolingModel.load(sys.argv[1], precision=sys.argv[2] or None)
model.embed("A cat sleeps on the sofa.")
print(model.variant.name)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision", default="")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(argv)
    seconds = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        command = [sys.executable, "-c", CHILD, str(options.artifact), options.precision]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    print(
        f"{done.stdout.strip()}: {statistics.median(seconds):.3f} s from starting the process to its end "
        f"(median of {options.rounds}, {min(seconds):.3f} to {max(seconds):.3f}), one answer in it"
    )


if __name__ == "__main__":
    main()
