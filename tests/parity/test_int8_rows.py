"""int8 of the support table's rows: the export's gate passes, and texts keep their bits in batches."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from parity_table import make_texts, record
from support_row import SupportRow
from support_rows import SUPPORT_ROWS
from tiny_models import few_calibration_texts, tame

from poolgraph import PoolingModel, export_model
from poolgraph.graphs import quantize_embeddings
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.pipeline import CPU_FP32, CPU_INT8, NATIVE_INT8
from poolgraph.runtime.native_library import can_run
from poolgraph.runtime.session import build_session_options

IN_CI = (
    "embed Qwen3Model",
    "embed ModernBertModel",
    "embed NewModel fixed NTK",
    "embed NomicBertModel experts",
    "classify GPT2ForSequenceClassification",
    "score DebertaV2ForSequenceClassification",
    "reward Qwen2ForProcessRewardModel STEP",
    "colbert HF_ColBERT",
    "tokens RobertaForTokenClassification",
)
"""Rows that every run of the tests has."""

ALL_ROWS = "POOLGRAPH_ALL_ROWS"
"""The variable that, set to anything, asks for every row: six minutes."""

FASTEST = "native_int8" if can_run(NATIVE_INT8) else "cpu_int8"

ROWS = [row for row in SUPPORT_ROWS if os.environ.get(ALL_ROWS) or row.name in IN_CI]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_int8_of_a_row(row: SupportRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_embeddings, "FEWEST_VALUES", 1)
    row.make(tmp_path / "checkpoint")
    tame(tmp_path / "checkpoint" / "model.safetensors")
    texts = few_calibration_texts(tmp_path)
    export_model(tmp_path / "checkpoint", tmp_path / "artifact", precisions=("int8",), calibration=texts, **row.options)
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert (model.variant.name, model.manifest.variants[0].name) == (FASTEST, "portable_int8")
        quantization = model.variant.quantization
        assert quantization is not None
        assert quantization.mean_cosine is not None
        assert quantization.static + quantization.token > 0
        assert not (quantization.routers and quantization.float32)  # experts are 8 bits, what chooses them is float32
        assert len(quantization.tables) + len(quantization.float32_tables) == 1
        # Of the other rows' wide random weights a table in 8 bits may cost too much, and then it stays.
        assert quantization.tables or row.name not in IN_CI
        record("int8, held-out texts", row.name, "its float32", 1.0 - quantization.mean_cosine)
        texts = make_texts(model.count_tokens, 100, tag=row.tag)
        ask = getattr(model, row.method)
        found = list(ask(texts))
        alone = [ask([text])[0] for text in texts]
        assert all(np.array_equal(*pair) for pair in zip(alone, found, strict=True))
    check_fusions(tmp_path / "artifact")


def check_fusions(artifact: Path) -> None:
    """Check that what keeps ONNX Runtime's sums exact lets its optimizer fuse nothing more.

    At the basic level it leaves pairs of QuantizeLinear and DequantizeLinear that it has made itself, and a Relu in
    front of a QuantizeLinear that cuts at 0 anyway.
    """
    for graph in open_artifact(artifact).variant(CPU_INT8.variant_name).graphs.values():
        basic, exact = (optimize(artifact / graph.file, target.session_options) for target in (CPU_FP32, CPU_INT8))
        assert exact - basic == Counter()
        assert {*(basic - exact)} <= {"QuantizeLinear", "DequantizeLinear", "Relu"}


def optimize(file: Path, entries: Mapping[str, str]) -> Counter[str]:
    """Return the numbers of operators that ONNX Runtime runs of a graph."""
    options = build_session_options(onnxruntime, entries, 1)
    options.optimized_model_filepath = str(file.with_suffix(".optimized"))
    disabled = entries.get("disabled_optimizers", "").split(",")
    onnxruntime.InferenceSession(str(file), options, disabled_optimizers=disabled)
    graph = onnx.load(file.with_suffix(".optimized"), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)
