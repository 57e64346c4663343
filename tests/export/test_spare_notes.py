"""Traces without notes: the same graphs, torch as it was behind them, and programs that run all the same."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from onnx.defs import get_schema
from onnx_ir.schemas import OpSignature
from tiny_heads import plan_of, save_model
from torch import Tensor, nn
from torch.fx import GraphModule, graph_module
from torch.fx.experimental import proxy_tensor

from poolgraph.export import direct_program, spare_notes, trace
from poolgraph.export.build import build_module, trace_layout
from poolgraph.export.spare_notes import code_on_demand, known_signatures, spared_notes
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pipeline import PACKED_FP32, PORTABLE, Target
from poolgraph.graphs.storage import save_graphs

STACK_TRACE = "pkg.torch.onnx.stack_trace"


class Doubled(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows + rows


def places() -> list[object]:
    return [
        torch.fx.config.do_not_emit_stack_traces,
        proxy_tensor._extract_tensor_metadata,
        OpSignature.__dict__["from_op_schema"],
    ]


@pytest.mark.parametrize(
    ("name", "target", "is_known"),
    [("ModernBertModel", PACKED_FP32, True), ("Qwen3Model", PORTABLE, True), ("Qwen3Model", PORTABLE, False)],
)
def test_the_bytes_of_a_graph_are_what_they_would_be_without(
    name: str, target: Target, is_known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have regions without gradients, of which torch makes programs of their own; the long way runs programs."""
    if not is_known:
        monkeypatch.setattr(direct_program, "TRANSLATED", frozenset())
    plan = plan_of(save_model(tmp_path / "checkpoint", name, name))
    module = build_module(plan)
    noted, files = [], []
    for notes in (spared_notes, contextlib.nullcontext):
        monkeypatch.setattr(trace, "spared_notes", notes)
        if notes is not spared_notes:
            for place in (trace, direct_program):
                monkeypatch.setattr(place, "code_on_demand", notes)
        model, _ = trace_layout(plan, module, target.layout)
        noted.append(any("in forward" in node.metadata_props.get(STACK_TRACE, "") for node in model.graph))
        run_passes(model, target.passes)
        folder = tmp_path / notes.__name__
        folder.mkdir()
        save_graphs({"model.onnx": model}, folder, "weights.data")
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert noted == [False, True]
    assert files[0].keys() == {"model.onnx", "weights.data"}
    assert files[0] == files[1]


def test_torch_is_as_it_was_behind_them_whatever_happens() -> None:
    before = places()
    with spared_notes():
        assert not any(one == other for one, other in zip(places(), before, strict=True))
    recompile = GraphModule.recompile
    with code_on_demand():
        assert GraphModule.recompile is not recompile
    with pytest.raises(ZeroDivisionError), spared_notes(), code_on_demand():
        raise ZeroDivisionError
    assert places() == before
    assert GraphModule.recompile is recompile


def test_a_program_becomes_code_when_it_is_called() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    with code_on_demand():
        programs = [torch.fx.symbolic_trace(Doubled()) for _ in range(2)]
        assert not hasattr(programs[0], "_code")
        assert torch.equal(programs[0](rows), 2 * rows)
        assert "rows + rows" in programs[0].code
    assert torch.equal(programs[1](rows), 2 * rows), "called later, it is compiled all the same"
    assert "rows + rows" in programs[1].code


def test_signatures_are_those_of_onnx_and_each_version_has_its_own() -> None:
    schemas = [get_schema("Clip", version, "") for version in (6, 13)]
    expected = [str(OpSignature.from_op_schema(schema)) for schema in schemas]
    with known_signatures():
        found = [OpSignature.from_op_schema(schema) for schema in schemas]
        assert OpSignature.from_op_schema(schemas[0]) is found[0]
    assert [str(one) for one in found] == expected
    assert expected[0] != expected[1]


def test_a_torch_without_these_places_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(proxy_tensor, "_extract_tensor_metadata")
    monkeypatch.delattr(graph_module, "_WrappedCall")
    monkeypatch.setattr(spare_notes.torch.fx, "config", None)
    recompile = GraphModule.recompile
    with spared_notes(), code_on_demand():
        assert not hasattr(proxy_tensor, "_extract_tensor_metadata")
        assert GraphModule.recompile is recompile
