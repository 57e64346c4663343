"""fp16: which nodes would leave its range, by the largest activations on calibration texts."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from poolgraph.errors import Float16RangeError
from poolgraph.export.calibration_inputs import encode_calibration
from poolgraph.export.calibration_texts import CalibrationTexts
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.attention_scores import is_score, watched_parts, with_whole_scores
from poolgraph.graphs.lower_attention_blocks import UNSEEN
from poolgraph.graphs.lower_attention_cuda import standard_attentions
from poolgraph.graphs.manifest import FloatRange, Variant
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pipeline import CUDA_PROBED, CUDA_PROJECTIONS
from poolgraph.graphs.storage import save_graphs
from poolgraph.graphs.watch import watch_ranges
from poolgraph.runtime.runner_uniform import attended_tokens, token_types
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.watched import WatchedGraph

LARGEST_FLOAT16 = float(np.finfo(np.float16).max)

LARGEST_SCORE = -UNSEEN / 2
"""Scores up to this one differ by less than what hides a key from a query in 16 bits."""

HEADROOM = 4.0
"""How many times the largest number seen must fit: other texts go beyond the calibration texts."""

MOST_KEPT = 0.1
"""Share of the nodes that may stay in float32; beyond, the casts around them cost more than bf16 does in precision."""

NUM_TEXTS = 48


@dataclass(frozen=True, slots=True)
class HalfPlan:
    """What stays in float32 in float16's graphs of one layout: names of values, and the record for the manifest."""

    kept: tuple[str, ...]
    record: FloatRange | None


def plan_half(plan: ExportPlan, semantic: ir.Model, calibration: CalibrationTexts | None) -> HalfPlan:
    """Find the values that would leave float16's range.

    Scores of attention are among them where no kernel takes it, as with sinks: kernels compute them in float32.

    Args:
        plan: What is exported.
        semantic: The traced graph of one layout, padded or packed, left as it is; each has its own names of values.
        calibration: None for a checkpoint too large to run here: then nothing is kept, and its twin is probed.

    Raises:
        Float16RangeError: too many values leave the range.
    """
    if calibration is None:
        return HalfPlan((), None)
    largest = _measure(plan, semantic, calibration)
    beyond = tuple(name for name, maximum in largest.items() if not maximum * HEADROOM < _limit(name))
    if len(beyond) > MOST_KEPT * len(largest):
        worst = sorted(beyond, key=lambda name: -largest[name])[:3]
        raise Float16RangeError(
            f"{len(beyond)} of {len(largest)} values go beyond a quarter of fp16's largest number, 65,504: "
            f"{', '.join(f'{name} ({largest[name]:,.0f})' for name in worst)} and more"
        )
    kept = with_whole_scores(beyond)
    record = FloatRange(largest=max(largest.values(), default=0.0), float32=kept, calibration=calibration.name)
    return HalfPlan(kept, record)


def _limit(name: str) -> float:
    """Return how large a value may be in fp16."""
    return LARGEST_SCORE if is_score(name) else LARGEST_FLOAT16


def check_twin_range(variants: Sequence[Variant], num_layers: int) -> None:
    """Refuse a checkpoint too large to run here of whose first layers values leave fp16's range.

    Which values of the later layers do is not known, and what is kept in float32 goes by the names of one graph.

    Raises:
        Float16RangeError: naming the values.
    """
    records = [variant.float_range.float32 for variant in variants if variant.float_range]
    beyond = max(records, key=len, default=())  # of one graph: in each the same values have other names
    if beyond:
        raise Float16RangeError(
            f"in the first {num_layers} layers {len(beyond)} values go beyond a quarter of fp16's largest number, "
            f"65,504: {', '.join(sorted(beyond)[:3])}; the others are not known, since the checkpoint is too large to "
            "run here as a whole",
            "raise --max-memory, or export with --precision bf16",
        )


def _measure(plan: ExportPlan, semantic: ir.Model, calibration: CalibrationTexts) -> Mapping[str, float]:
    """Return the largest absolute number of each value of the backbone's rows over the calibration texts."""
    inputs = encode_calibration(plan, calibration.texts)
    texts = [*inputs.encoded[:: max(1, len(inputs.encoded) // NUM_TEXTS)], *inputs.edges]
    model = semantic.clone()
    run_passes(model, CUDA_PROJECTIONS)
    names = {str(value.name) for node in model.graph for value in node.outputs}
    names |= watched_parts(standard_attentions(model))
    run_passes(model, CUDA_PROBED)
    watched = watch_ranges(model, names)
    largest = dict.fromkeys(watched.values(), 0.0)
    if not watched:
        return largest
    given = {str(value.name) for value in model.graph.inputs}
    with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
        save_graphs({"watched.onnx": model}, Path(folder), "watched.bin")
        session = WatchedGraph(Path(folder) / "watched.onnx", tuple(watched))
        for text in texts:
            for output, maximum in session.run(_feed(text, given)).items():
                largest[watched[output]] = max(largest[watched[output]], float(maximum))
    return largest


def _feed(text: EncodedText, given: Collection[str]) -> dict[str, NDArray[np.int64]]:
    """Return one text as a graph's inputs: a batch of one row, or packed on its own."""
    rows = {
        "input_ids": text.input_ids,
        "attention_mask": np.ones_like(text.input_ids),
        "attended_mask": attended_tokens(text),
        "token_type_ids": token_types(text),
    }
    if "cu_seqlens" not in given:
        rows = {name: values[None] for name, values in rows.items()}
    more = {"cu_seqlens": np.array([0, text.num_tokens]), "prompt_length": np.array([text.prompt_length])}
    return {name: values for name, values in {**rows, **more}.items() if name in given}
