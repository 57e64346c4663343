"""What pushing pooling down gains: the same CLS-pooled checkpoint exported with the pass and without it.

Each graph runs in a process of its own, round after round in turn, on token ids (8 texts of 128). The checkpoints have
seeded random weights; their files go below ``POOLGRAPH_BENCH_DIR`` (``.bench/``). Without the pass the last layer's
query, key and value are merged again, as they were before there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from feeds import make_feeds
from models import BENCH_DIR, write_random_bert

from poolgraph.runtime.bench_machine import describe_machine
from poolgraph.runtime.bench_timing import Timing, measure
from poolgraph.runtime.cpu import count_cores

SHAPES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "bert-base": {},
        "6-layers": {
            "num_hidden_layers": 6,
            "hidden_size": 384,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    }
)
"""Arguments of BertConfig."""

KINDS = ("with", "without")
CHILD_TIMEOUT_S = 1800
"""Of the token ids: words of BERT's vocabulary."""


def checkpoint_dir(shape: str) -> Path:
    """Return where a shape's checkpoint is."""
    return BENCH_DIR / "push_pooling" / shape / "checkpoint"


def artifact_dir(shape: str, kind: str) -> Path:
    """Return where a shape's artifact of a kind is."""
    return BENCH_DIR / "push_pooling" / shape / kind


def export(shape: str, kind: str, precisions: Sequence[str]) -> None:
    """Export in this process, without the pass if that is the kind."""
    from poolgraph.export import exporter
    from poolgraph.graphs import pipeline

    if kind == "without":
        lower, note = exporter.lower_variant, pipeline.note_row_products
        exporter.lower_variant = lambda semantic, reports, target, *rest: lower(
            semantic, reports, replace(target, sequence_passes=()), *rest
        )
        pipeline.SEMANTIC_PASSES = tuple(it for it in pipeline.SEMANTIC_PASSES if it is not note)
    exporter.export_model(checkpoint_dir(shape), artifact_dir(shape, kind), precisions=precisions)


def run_shape(shape: str, kind: str, precision: str, batch: Sequence[int]) -> dict[str, Any]:
    """Measure one graph in this process; ``batch`` is its texts and their tokens."""
    from poolgraph.graphs.artifact import open_artifact
    from poolgraph.runtime.session import open_session, run_graph

    directory = artifact_dir(shape, kind)
    manifest = open_artifact(directory)
    variant = next(it for it in manifest.variants if it.precision == precision and it.target != "portable")
    graph = variant.graphs["sequence"]
    session = open_session(directory / graph.file, variant, count_cores(), provider="CPUExecutionProvider")
    feeds = make_feeds(manifest, variant, batch)
    answer = run_graph(session, graph, feeds)
    seconds = measure(lambda: run_graph(session, graph, feeds), Timing(), 0.0)
    return {"median_s": statistics.median(seconds), "answer": np.asarray(answer[0], dtype=np.float64).tolist()}


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the cosine of two vectors."""
    one, other = np.asarray(left), np.asarray(right)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def summarize(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Reduce the rounds of one shape to the median times, their ratio, and how alike the answers are."""
    times = {kind: statistics.median(line[kind]["median_s"] for line in rounds) for kind in KINDS}
    alike = min(cosine(line["with"]["answer"], line["without"]["answer"]) for line in rounds)
    return {**times, "ratio": times["without"] / times["with"], "min_cosine": alike}


def call(*arguments: str) -> str:
    """Run this file in a process of its own and return its last line."""
    command = [sys.executable, __file__, *arguments]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=CHILD_TIMEOUT_S)
    return (answer.stdout.splitlines() or [""])[-1]


def prepare(shape: str, precisions: str) -> None:
    """Write checkpoint and artifacts anew."""
    shutil.rmtree(checkpoint_dir(shape).parent, ignore_errors=True)
    checkpoint_dir(shape).parent.mkdir(parents=True)
    write_random_bert(SHAPES[shape], checkpoint_dir(shape), pooling="cls_token")
    for kind in KINDS:
        call("--shapes", shape, "--precisions", precisions, "--export", kind)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare and measure all shapes, or do one step in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated names")
    parser.add_argument("--precisions", default="fp32", help="comma-separated: fp32, int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs=2, default=[8, 128], metavar="N")
    parser.add_argument("--export", choices=KINDS, help="export this kind of the shape and nothing else")
    parser.add_argument("--run", choices=KINDS, help="measure this kind alone and print a line of JSON")
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    shapes, precisions = options.shapes.split(","), options.precisions.split(",")
    if options.export:
        export(shapes[0], options.export, precisions)
        return
    if options.run:
        print(json.dumps(run_shape(shapes[0], options.run, precisions[0], options.batch)))
        return
    print(f"{describe_machine()}; load {os.getloadavg()}; batch {options.batch}; {options.rounds} rounds")
    batch = [str(size) for size in options.batch]
    for shape in shapes:
        prepare(shape, options.precisions)
        for precision in precisions:
            arguments = ("--shapes", shape, "--precisions", precision, "--batch", *batch)
            rounds = [
                {kind: json.loads(call(*arguments, "--run", kind)) for kind in KINDS} for _ in range(options.rounds)
            ]
            row = summarize(rounds)
            print(
                f"{shape:10} {precision}: {1e3 * row['with']:.1f} ms with the pass, "
                f"{1e3 * row['without']:.1f} ms without, {row['ratio']:.3f} times as fast; "
                f"cosine {row['min_cosine']:.7f}"
            )


if __name__ == "__main__":
    main()
