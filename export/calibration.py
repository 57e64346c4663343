"""Calibration: what the sources of a graph's products hold while it answers calibration texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.lower_attention import lower_attention_to_standard
from poolgraph.graphs.lower_distance_biases import lower_distance_biases
from poolgraph.graphs.lower_scan import lower_selective_scan
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.storage import save_graphs
from poolgraph.graphs.watch import watch_sources
from poolgraph.runtime.watched import WatchedGraph

Floats = NDArray[np.float32]
MAX_ROWS = 512
"""Token rows that are kept of a source, to measure what quantizing its products costs."""


@dataclass(slots=True)
class Observation:
    """What one source held.

    Attributes:
        low: Least of each feature, (in_features,).
        high: Largest of each feature, (in_features,).
        rows: A sample of token rows, (num_rows, in_features).
    """

    low: Floats
    high: Floats
    rows: Floats


def observe(
    semantic: ir.Model, feeds: Sequence[Mapping[str, NDArray[np.int64]]], folder: Path
) -> dict[str, Observation]:
    """Run the uniform graph in float32 and observe the sources of its products.

    Args:
        semantic: The traced graph of the uniform layout; left as it is.
        feeds: One text's inputs each.
        folder: An empty one for the graph and its weights.

    Returns:
        An observation by the name of each group of products.
    """
    model = semantic.clone()
    run_passes(model, (lower_attention_to_standard, lower_distance_biases, lower_selective_scan, remove_dead_nodes))
    watched = watch_sources(model)
    save_graphs({"watched.onnx": model}, folder, "watched.bin")
    graph = WatchedGraph(folder / "watched.onnx", tuple(dict.fromkeys(watched.values())))
    kept = max(1, MAX_ROWS // max(len(feeds), 1))
    observations: dict[str, Observation] = {}
    for index, feed in enumerate(feeds):
        for name, rows in graph.run(feed).items():
            _update(observations, name, rows.reshape(-1, rows.shape[-1]), _choose_rows(rows.shape[1], kept, index))
    return {group: observations[name] for group, name in watched.items()}


def _choose_rows(num_tokens: int, kept: int, seed: int) -> NDArray[np.int64]:
    """Choose rows of a text, the first one, which most models treat apart, not more often than others."""
    count = min(kept, num_tokens)
    return np.sort(np.random.default_rng(seed).choice(num_tokens, size=count, replace=False))


def _update(observations: dict[str, Observation], name: str, rows: Floats, chosen: NDArray[np.int64]) -> None:
    low, high, sample = rows.min(0), rows.max(0), rows[chosen]
    if name in observations:
        before = observations[name]
        low, high = np.minimum(before.low, low), np.maximum(before.high, high)
        sample = np.concatenate([before.rows, sample])
    observations[name] = Observation(low, high, sample)


def split_held_out(count: int) -> tuple[list[int], list[int]]:
    """Return the indices of texts that are observed, and those of every fourth one, by which recipes are judged."""
    indices = range(count)
    return [index for index in indices if index % 4 != 3], [index for index in indices if index % 4 == 3]
