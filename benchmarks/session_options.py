"""What each session option is worth: every variant of an artifact under one changed option at a time.

    .venv/bin/python benchmarks/session_options.py DIR [--rounds 3]

Each setting and round is a process of its own, in turn. Prints a table and writes ``results/session_options.json``:
token ids to answers, 8 texts of 128 tokens in one run on all cores, milliseconds, and times as fast as the variant's
own options.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from feeds import make_feeds

from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.bench_machine import describe_machine, read_versions
from poolgraph.runtime.bench_timing import Timing, measure
from poolgraph.runtime.cpu import count_cores, read_cpu_info
from poolgraph.runtime.loading import working_machine
from poolgraph.runtime.session import open_session, run_graph

RESULTS = Path(__file__).resolve().parent / "results" / "session_options.json"
SHAPE = (8, 128)
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "as exported": {},
    "disable": {"graph_optimization_level": "disable"},
    "basic": {"graph_optimization_level": "basic"},
    "extended": {"graph_optimization_level": "extended"},
    "extended, no SkipLayerNorm": {
        "graph_optimization_level": "extended",
        "disabled_optimizers": "SkipLayerNormFusion,BiasSkipLayerNormFusion",
    },
    "all": {"graph_optimization_level": "all"},
    "no spinning": {"session.intra_op.allow_spinning": "0"},
    "dynamic blocks": {"session.dynamic_block_base": "4"},
    "denormals as zero": {"session.set_denormal_as_zero": "1"},
}


def run_setting(directory: Path, name: str, setting: str) -> dict[str, float]:
    """Measure one variant under one setting in this process."""
    manifest = open_artifact(directory)
    variant = manifest.variant(name)
    variant = msgspec.structs.replace(variant, session_options={**variant.session_options, **SETTINGS[setting]})
    graph = variant.graphs["sequence"]
    session = open_session(directory / graph.file, variant, count_cores(), provider="CPUExecutionProvider")
    feeds = make_feeds(manifest, variant, SHAPE)
    return {"median_s": statistics.median(measure(lambda: run_graph(session, graph, feeds), Timing(), 0.0))}


def call(directory: Path, name: str, setting: str) -> float:
    """Measure in a process of its own; NaN where ONNX Runtime refuses the setting."""
    command = [sys.executable, __file__, str(directory), "--run", name, setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])["median_s"] if done.returncode == 0 else float("nan")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("VARIANT", "SETTING"), help="measure this alone")
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.run:
        print(json.dumps(run_setting(options.artifact, *options.run)))
        return
    machine = working_machine(read_cpu_info())
    names = [it.name for it in open_artifact(options.artifact).variants if machine.runs(it)]
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for setting in SETTINGS:
            for name in names:
                seconds.setdefault((name, setting), []).append(call(options.artifact, name, setting))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    rows: list[dict[str, Any]] = []
    print(f"{'setting':<28}" + "".join(f"{name:>24}" for name in names))
    for setting in SETTINGS:
        cells = {
            name: (1e3 * medians[name, setting], medians[name, "as exported"] / medians[name, setting])
            for name in names
        }
        rows.append({"setting": setting, **{name: {"ms": ms, "speed": speed} for name, (ms, speed) in cells.items()}})
        print(f"{setting:<28}" + "".join(f"{ms:>15.1f} ({speed:.2f})" for ms, speed in cells.values()), flush=True)
    result = {
        "machine": describe_machine(),
        "versions": read_versions(),
        "rounds": options.rounds,
        "shape": SHAPE,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
