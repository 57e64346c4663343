"""What int8 is judged by: one run for all families of a graph, with the answers of the graphs that are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_heads import plan_of, save_model
from tiny_models import HeadSpec, save_checkpoint

from poolgraph.export.build import LoweredVariant, build_module, lower_together, lower_variant, trace_layout
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.pipeline import CPU_FP32
from poolgraph.graphs.storage import save_graphs

TOKENS = np.array([[2, 11, 7, 19, 3]])


def answers_of(lowered: LoweredVariant, folder: Path) -> dict[str, np.ndarray]:
    """Run a variant's graphs on one text; raw answers by family."""
    folder.mkdir()
    save_graphs(lowered.models, folder, "weights.data")
    answers = {}
    for family, graph in lowered.variant.graphs.items():
        session = onnxruntime.InferenceSession(folder / Path(graph.file).name)
        feeds = {item.name: TOKENS if item.name == "input_ids" else np.zeros_like(TOKENS) for item in graph.inputs}
        answers[family] = session.run([graph.raw_output], feeds)[0]
    return answers


def trace(plan: ExportPlan) -> ir.Model:
    """Trace the uniform layout."""
    return trace_layout(plan, build_module(plan), "uniform")[0]


@pytest.mark.parametrize(
    ("save", "names"),
    [
        (lambda it: save_checkpoint(it, "BertModel", HeadSpec()), ["pooled", "raw_token_embeddings"]),
        (lambda it: save_model(it, "Qwen3Model", "Qwen3ForSequenceClassification"), ["logits", "token_logits"]),
    ],
)
def test_one_run_has_the_answers_of_every_familys_graph(
    save: Callable[[Path], Path], names: list[str], tmp_path: Path
) -> None:
    plan = plan_of(save(tmp_path / "checkpoint"))
    semantic = trace(plan)
    apart = lower_variant(semantic, (), CPU_FP32, plan.head.kind)
    together = lower_together(semantic, CPU_FP32)
    assert len(together.models) == 1
    assert [graph.raw_output for graph in together.variant.graphs.values()] == names
    expected, found = answers_of(apart, tmp_path / "apart"), answers_of(together, tmp_path / "together")
    assert list(found) == list(expected)
    for family in expected:
        np.testing.assert_allclose(found[family], expected[family], rtol=0, atol=1e-5)
