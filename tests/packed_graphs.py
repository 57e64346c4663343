"""The packed layout's graphs of a checkpoint, lowered to standard operators: texts one after the other in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from architecture_graphs import FIRST_WORD, TextOracle, ask, difference_of

from poolgraph.export.build import build_module, lower_variant, trace_layout
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import make_options
from poolgraph.export.resolve import resolve_plan
from poolgraph.graphs.families import AnswerKind
from poolgraph.graphs.manifest import Rewrites
from poolgraph.graphs.pipeline import PACKED_FP32, Target
from poolgraph.graphs.storage import save_graphs
from poolgraph.tasks import GraphFamily


@dataclass(frozen=True, slots=True)
class Traced:
    """The packed semantic graph of a checkpoint, and what its answers are."""

    model: ir.Model
    reports: tuple[Rewrites, ...]
    kind: AnswerKind


def trace_packed(checkpoint: Path, *, follows_uniform: bool = False, **options: Any) -> Traced:
    """Trace the packed layout of a checkpoint, as an export with these options does.

    Args:
        checkpoint: Its folder.
        follows_uniform: Whether the uniform layout is traced first and decides which products are set apart.
        options: Of the export.
    """
    names = ("task", "convert", "runner", "pooler_config", "hf_overrides", "score_template")
    defaults = {"task": "auto", "convert": "auto", "runner": "auto"}
    plan = resolve_plan(
        open_checkpoint(checkpoint, None),
        options=make_options(*({**defaults, **options}.get(name) for name in names)),
        precisions=("fp32",),
        targets=("cpu",),
        trust_remote_code=False,
    )
    module = build_module(plan)
    uniform = trace_layout(plan, module, "uniform")[0] if follows_uniform else None
    return Traced(*trace_layout(plan, module, PACKED_FP32.layout, uniform), plan.head.kind)


class PackedGraph:
    """One packed graph of a checkpoint, lowered.

    Args:
        traced: What is lowered.
        folder: Where the graphs are written, made by this call.
        family: Which answers.
        target: How it is lowered.
    """

    def __init__(
        self, traced: Traced, folder: Path, family: GraphFamily = "sequence", target: Target = PACKED_FP32
    ) -> None:
        folder.mkdir()
        lowered = lower_variant(traced.model, traced.reports, target, traced.kind)
        save_graphs(lowered.models, folder, "weights.data")
        graph = lowered.variant.graphs[family]
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3
        session_options.intra_op_num_threads = 1
        self.inputs = {tensor.name: tensor.shape for tensor in graph.inputs}
        self.file = folder / Path(graph.file).name
        self._session = onnxruntime.InferenceSession(self.file, session_options)
        self._output, self._is_token = graph.raw_output, family == "token"

    def run(self, texts: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """Answer texts, whose inputs are (1, num_tokens) each, in one run: (size,) or (num_tokens, size) each."""
        lengths = [text["input_ids"].shape[1] for text in texts]
        bounds = np.cumsum([0, *lengths])
        feeds = {"cu_seqlens": bounds, "attended_mask": np.ones(bounds[-1], dtype=np.int64)}
        feeds |= {name: np.concatenate([text[name][0] for text in texts]) for name in texts[0]}
        answers = self._session.run([self._output], {name: feeds[name] for name in self.inputs})[0]
        return np.split(answers, bounds[1:-1]) if self._is_token else list(answers)


LENGTHS = (1, 17, 513, 2, 64, 1, 129, 9, 3)
"""Of the texts of one row, in this order."""


def check_packed(
    checkpoint: Path, folder: Path, oracle: TextOracle, family: GraphFamily = "sequence", **options: Any
) -> float:
    """Check texts in one packed row, and in the opposite order; return the largest difference as a share of the scale.

    What ``check_graphs`` says of padded and uniform graphs, this says of packed ones.
    """
    graph = PackedGraph(trace_packed(checkpoint, **options), folder, family)
    source = np.random.default_rng(len(LENGTHS))
    texts = [{"input_ids": source.integers(FIRST_WORD, 300, (1, length))} for length in LENGTHS]
    if "token_type_ids" in graph.inputs:
        for text, length in zip(texts, LENGTHS, strict=True):
            text["token_type_ids"] = (np.arange(length)[None] >= length // 2).astype(np.int64)
    expected = [ask(oracle, text) for text in texts]
    return max(
        difference_of(expected, graph.run(texts)),
        difference_of(expected, graph.run(texts[::-1])[::-1]),
        difference_of(expected[:1], graph.run(texts[:1])),
    )
