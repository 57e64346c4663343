"""The portable graph is what TensorRT and other programs take: standard operators alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from task_artifacts import ARTIFACTS


def find_domains(graph: onnx.GraphProto) -> set[str]:
    """Domains of the operators of a graph and of the graphs inside it."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {node.domain for node in graph.node}.union(*map(find_domains, inner))


@pytest.mark.parametrize("name", ARTIFACTS)
def test_no_contrib_operator_is_in_a_portable_graph(name: str, task_artifact: Callable[[str], Path]) -> None:
    files = [
        file
        for file in (task_artifact(name) / "onnx").glob("model*.onnx")
        if "_cpu_" not in file.name and "_native_" not in file.name
    ]
    assert files
    for file in files:
        model = onnx.load(file, load_external_data=False)
        assert find_domains(model.graph) <= {"", "ai.onnx"}, file.name
        assert model.functions == [] or not len(model.functions)
        assert {row.domain for row in model.opset_import} <= {"", "ai.onnx"}


def test_the_walk_finds_what_it_must(task_artifact: Callable[[str], Path]) -> None:
    model = onnx.load(task_artifact("embedder") / "onnx" / "model_cpu_fp32.onnx", load_external_data=False)
    assert "com.microsoft" in find_domains(model.graph)
