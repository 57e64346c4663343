"""Traces by known shapes: the same graphs, and torch as it was behind them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from tiny_heads import plan_of, save_model
from torch import nn

from poolgraph.export import known_shapes as module
from poolgraph.export import trace
from poolgraph.export.build import build_module, trace_inputs
from poolgraph.export.known_shapes import KNOWN, known_shapes


def kernels() -> list[dict]:
    return [dict(operator.py_kernels) for operator in KNOWN]


def described(model: ir.Model) -> list[tuple]:
    """Nodes with what they read, by number or by an input's or a weight's name; types and shapes of their answers."""
    numbers: dict[ir.Value | None, object] = {None: None}
    for node in model.graph:
        numbers |= {value: len(numbers) + place for place, value in enumerate(node.outputs)}
    return [
        (
            node.op_type,
            [numbers.get(value, getattr(value, "name", None)) for value in node.inputs],
            [(str(value.dtype), str(value.shape)) for value in node.outputs],
        )
        for node in model.graph
    ]


@pytest.mark.parametrize(("name", "layout"), [("BertModel", "padded"), ("Qwen3Model", "packed")])
def test_a_graph_is_what_it_would_be_without(
    name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(save_model(tmp_path, name, name))
    arguments = (build_module(plan), layout, trace_inputs(plan), plan.limits.max_model_len)
    asked: list[object] = []
    shapes = {key: lambda *a, shape=shape, **k: asked.append(shape) or shape(*a, **k) for key, shape in KNOWN.items()}
    monkeypatch.setattr(module, "KNOWN", shapes)
    found = described(trace.trace_module(*arguments))
    assert asked
    monkeypatch.setattr(trace, "known_shapes", contextlib.nullcontext)
    assert found == described(trace.trace_module(*arguments))


def test_torch_is_as_it_was_behind_it_whatever_happens() -> None:
    before, rows = kernels(), torch.randn(2, 3, 4)
    norm, product = nn.LayerNorm(4), nn.Linear(4, 5)
    expected = product(norm(rows))
    with known_shapes():
        assert kernels() != before
        assert torch.equal(product(norm(rows)), expected), "what runs is not a trace"
    with pytest.raises(ZeroDivisionError), known_shapes():
        raise ZeroDivisionError
    assert kernels() == before


def test_a_torch_without_these_places_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN", {object(): None})
    with known_shapes():
        pass
