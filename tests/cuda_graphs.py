"""A checkpoint's CUDA graphs in float32, evaluated in numpy, beside its portable graph on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from architecture_graphs import FIRST_WORD
from cuda_operators import run_reference

from poolgraph.export.build import build_module, trace_layout
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import make_options
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.graphs.cleanup import clear_notes, remove_dead_nodes
from poolgraph.graphs.families import select_family
from poolgraph.graphs.lower_attention_cuda import fits_packed
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pipeline import CUDA_LOWERING, PORTABLE, cuda_passes
from poolgraph.graphs.storage import save_graphs
from poolgraph.tasks import GraphFamily

LENGTHS = (19, 1, 2, 33, 8, 150)
MAX_LENGTH = 160
"""Shape of the longest text in the packed bucket, beyond the longest there is."""

EMPTY_TEXTS, DUMMY_TOKENS = 2, 45
"""What fills a packed bucket: empty texts in front, tokens of no one's text behind."""

Inputs = dict[str, np.ndarray]


class CudaGraphs:
    """The graphs of one checkpoint.

    Args:
        checkpoint: Its folder.
        family: Which answers.
        options: Of the export.
    """

    def __init__(self, checkpoint: Path, family: GraphFamily = "sequence", **options: Any) -> None:
        self.plan, self.family = _plan(checkpoint, options), family
        self._module = build_module(self.plan)
        self._padded, _ = trace_layout(self.plan, self._module, "padded")
        self._traced = {"padded": self._padded}
        self.fits_packed = fits_packed(self._padded)

    def lowered(self, layout: str, precision: str | None = None, operators: str | None = None) -> ir.Model:
        """Lower for CUDA, in float32 where no precision is named."""
        if layout not in self._traced:
            self._traced[layout], _ = trace_layout(self.plan, self._module, layout)
        model = select_family(self._traced[layout], self.family, finished=False)
        assert model is not None
        plain = (*CUDA_LOWERING, remove_dead_nodes, clear_notes)
        run_passes(model, plain if precision is None else cuda_passes(precision, operators=operators))
        return model

    def expected(self, texts: Sequence[Inputs], folder: Path) -> list[np.ndarray]:
        """What the portable graph answers."""
        model = select_family(self._padded, self.family, finished=False)
        assert model is not None
        run_passes(model, PORTABLE.passes)
        folder.mkdir()
        save_graphs({"model.onnx": model}, folder, "weights.data")
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        feeds = padded_feeds(texts)
        answer = session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})[0]
        return self._rows(answer, texts)

    def answer(
        self, layout: str, texts: Sequence[Inputs], precision: str | None = None, operators: str | None = None
    ) -> list[np.ndarray]:
        """What the CUDA graph answers; what its kernels leave undefined is garbage."""
        model = self.lowered(layout, precision, operators)
        feeds = packed_feeds(texts) if layout == "packed" else padded_feeds(texts)
        names = [str(value.name) for value in model.graph.inputs]
        answer = next(iter(run_reference(model, {name: feeds[name] for name in names}).values()))
        if layout == "padded":
            return self._rows(answer, texts)
        if self.family == "sequence":
            return list(answer[EMPTY_TEXTS : EMPTY_TEXTS + len(texts)])
        bounds = np.cumsum([0, *(len(text["input_ids"]) for text in texts)])
        return [answer[start:stop] for start, stop in pairwise(bounds)]

    def _rows(self, answer: np.ndarray, texts: Sequence[Inputs]) -> list[np.ndarray]:
        if self.family == "sequence":
            return list(answer[: len(texts)])
        return [row[: len(text["input_ids"])] for row, text in zip(answer, texts, strict=False)]


def _plan(checkpoint: Path, options: Mapping[str, Any]) -> ExportPlan:
    names = ("task", "convert", "runner", "pooler_config", "hf_overrides", "score_template")
    defaults = {"task": "auto", "convert": "auto", "runner": "auto"}
    return resolve_plan(
        open_checkpoint(checkpoint, None),
        options=make_options(*({**defaults, **options}.get(name) for name in names)),
        precisions=("fp32",),
        targets=("cpu",),
        trust_remote_code=False,
    )


def random_texts(lengths: Sequence[int] = LENGTHS) -> list[Inputs]:
    """Texts of random words, the second half of each of another token type."""
    source = np.random.default_rng(0)
    return [
        {
            "input_ids": source.integers(FIRST_WORD, 300, length),
            "token_type_ids": (np.arange(length) >= length // 2).astype(np.int64),
        }
        for length in lengths
    ]


def hide_tokens(texts: Sequence[Inputs]) -> list[Inputs]:
    """The same texts with tokens, here and there, that none attends to."""
    source = np.random.default_rng(1)
    hidden = []
    for text in texts:
        attended = source.integers(0, 2, len(text["input_ids"]))
        attended[len(attended) // 2] = 1
        hidden.append({**text, "attended_mask": attended})
    return hidden


def padded_feeds(texts: Sequence[Inputs]) -> Inputs:
    """One batch, padded on the right, with a row of one token behind the texts."""
    shape = (len(texts) + 1, max(len(text["input_ids"]) for text in texts))
    feeds = {name: np.full(shape, FIRST_WORD if name == "input_ids" else 0) for name in texts[0]}
    mask = np.zeros(shape, dtype=np.int64)
    mask[-1, 0] = 1
    for row, text in enumerate(texts):
        mask[row, : len(text["input_ids"])] = 1
        for name, values in text.items():
            feeds[name][row, : len(values)] = values
    more = {"attention_mask": mask, "attended_mask": mask, "prompt_length": np.zeros(shape[0], dtype=np.int64)}
    if "attended_mask" in feeds:
        feeds["attended_mask"][-1, 0] = 1
    return more | feeds | {"total_sequence_length": np.array(shape[1], dtype=np.int32)}


def packed_feeds(texts: Sequence[Inputs]) -> Inputs:
    """One row: empty texts, the texts, and tokens of nobody's text."""
    lengths = [*[0] * EMPTY_TEXTS, *(len(text["input_ids"]) for text in texts), DUMMY_TOKENS]
    filling = np.full(DUMMY_TOKENS, 0)
    feeds = {name: np.concatenate([*(text[name] for text in texts), filling]) for name in texts[0]}
    return feeds | {
        "cu_seqlens": np.cumsum([0, *lengths]),
        "token_offset": np.zeros((len(lengths), MAX_LENGTH), dtype=np.int32),
        "attended_mask": np.ones(sum(lengths), dtype=np.int64),
        "prompt_length": np.zeros(len(lengths), dtype=np.int64),
    }
