"""bf16 on the CPU, of the support table's rows: the export's gate passes, and texts keep their bits in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from native_graphs import needs_native
from parity_table import make_texts
from support_row import SupportRow
from support_rows import SUPPORT_ROWS
from tiny_models import tame

from poolgraph import PoolingModel, export_model
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.native import BFLOAT

pytestmark = needs_native

NAMES = (
    "embed Qwen3Model",
    "embed ModernBertModel",
    "embed NomicBertModel experts",
    "embed Qwen3MoeModel",
    "score DebertaV2ForSequenceClassification",
    "tokens RobertaForTokenClassification",
)

ROWS = [next(row for row in SUPPORT_ROWS if row.name == name) for name in NAMES]

OPERATORS = {BFLOAT.matmul, BFLOAT.feed_forward, BFLOAT.experts}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bf16_of_a_row(row: SupportRow, tmp_path: Path) -> None:
    row.make(tmp_path / "checkpoint")
    tame(tmp_path / "checkpoint" / "model.safetensors")
    export_model(tmp_path / "checkpoint", tmp_path / "artifact", precisions=("bf16",), **row.options)
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert (model.variant.name, model.variant.verified) == ("native_bf16", True)
        texts = make_texts(model.count_tokens, 100, tag=row.tag)
        ask = getattr(model, row.method)
        found = list(ask(texts))
        alone = [ask([text])[0] for text in texts]
    assert all(np.array_equal(*pair) for pair in zip(alone, found, strict=True))
    for graph in open_artifact(tmp_path / "artifact").variant("native_bf16").graphs.values():
        nodes = onnx.load(tmp_path / "artifact" / graph.file, load_external_data=False).graph.node
        assert OPERATORS & {node.op_type for node in nodes}
