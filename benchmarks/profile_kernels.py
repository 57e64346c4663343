"""Where a run's time goes: ONNX Runtime's profile of a variant, summed by operator.

.venv/bin/python benchmarks/profile_kernels.py DIR [--variant native_int8] [--shape 8x128] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from feeds import make_feeds

from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest, Variant
from poolgraph.runtime.session import build_session_options, register_operators

RUNS = 30


def profile(
    directory: Path, manifest: Manifest, variant: Variant, shape: tuple[int, int], threads: int
) -> tuple[Counter[str], Counter[str]]:
    """Return milliseconds and calls a run by operator."""
    graph = variant.graphs["sequence"]
    options = build_session_options(onnxruntime, variant.session_options, threads)
    if variant.operators is not None:
        register_operators(options, variant.operators)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(directory / graph.file), options)
        feeds = make_feeds(manifest, variant, shape)
        for _ in range(RUNS):
            session.run([graph.raw_output], feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3 / RUNS
            calls[event["args"]["op_name"]] += 1
    return spent, Counter({name: count // RUNS for name, count in calls.items()})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--variant", default="native_int8")
    parser.add_argument("--shape", default="8x128", help="texts x tokens")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    texts, tokens = (int(number) for number in options.shape.split("x"))
    manifest = open_artifact(options.artifact)
    variant = manifest.variant(options.variant)
    spent, calls = profile(options.artifact, manifest, variant, (texts, tokens), options.threads)
    total = sum(spent.values())
    print(f"{options.variant}, {options.shape}, {options.threads} thread(s): {total:.2f} ms in kernels a run")
    for name, milliseconds in spent.most_common():
        print(f"  {name:<28}{calls[name]:>4} calls{milliseconds:>9.3f} ms{100 * milliseconds / total:>7.1f} %")


if __name__ == "__main__":
    main()
