"""Shared traces of tests: equal modules have one, others their own, and what is made of a copy is what it would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import shared_traces
from tiny_heads import plan_of, save_model
from tiny_models import HeadSpec, save_checkpoint

from poolgraph.export import build
from poolgraph.export.build import build_module, lower_variant, trace_layout
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.pipeline import CPU_FP32
from poolgraph.graphs.storage import save_graphs


def files_of(plan: ExportPlan, folder: Path) -> dict[str, bytes]:
    """Trace, lower and write the uniform layout."""
    lowered = lower_variant(*trace_layout(plan, build_module(plan), "uniform"), CPU_FP32, plan.head.kind)
    folder.mkdir()
    save_graphs(lowered.models, folder, "weights.data")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_made_of_a_shared_trace_is_what_it_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, trace = [], build.trace_module
    monkeypatch.setattr(shared_traces, "trace_module", lambda *given: traces.append(given) or trace(*given))
    folder = tmp_path / "traces"
    folder.mkdir()
    seeds = [save_model(tmp_path / f"seed {seed}", "Qwen3Model", "Qwen3Model", seed=seed) for seed in (0, 1)]
    with shared_traces.shared_traces(folder):
        first, other, again = (files_of(plan_of(seeds[it]), tmp_path / f"shared {n}") for n, it in enumerate((0, 1, 0)))
    assert len(traces) == 1
    assert build.trace_module is trace
    assert first == again == files_of(plan_of(seeds[0]), tmp_path / "own")
    assert other == files_of(plan_of(seeds[1]), tmp_path / "own of the other")
    assert first["weights.data"] != other["weights.data"]


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (HeadSpec(pooling={"pooling_mode_cls_token": True}), {}),
        (HeadSpec(modules=()), {}),
        (HeadSpec(max_seq_length=16), {}),
        (HeadSpec(), {"layer_norm_eps": 1e-3}),
        (HeadSpec(), {"hidden_act": "relu"}),
    ],
)
def test_another_module_has_a_trace_of_its_own(head: HeadSpec, options: dict[str, Any], tmp_path: Path) -> None:
    plans = [plan_of(save_checkpoint(tmp_path / "plain", "BertModel", HeadSpec()))]
    plans.append(plan_of(save_checkpoint(tmp_path / "other", "BertModel", head), hf_overrides=options))
    keys = [
        (shared_traces.describe_module(build_module(plan)), build.trace_inputs(plan), plan.limits.max_model_len)
        for plan in plans
    ]
    assert keys[0] != keys[1]
