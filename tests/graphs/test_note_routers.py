"""Products that choose experts: found behind what their scores go through, and set apart from the experts'."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from little_graphs import build, random

from poolgraph.graphs.note_routers import _product_behind, note_routers, router_weights
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pipeline import SEMANTIC_PASSES
from poolgraph.graphs.products import find_products

TEXT = """g (float[batch, length, 16] x) => (float[batch, length, 2] y, float[batch, length, 8] u)
<float[batch, length, 4] h, float[batch, length, 4] s, float[batch, length, 4] t, int64[batch, length, 2] i> {
    h = MatMul (x, backbone__router)
    s = Add (h, backbone__bias)
    t = Softmax (s)
    y, i = TopK <axis = -1> (t, two)
    u = MatMul (x, backbone__up)
}"""

WEIGHTS = {"backbone__router": random(16, 4), "backbone__bias": random(4), "backbone__up": random(16, 8)}


def test_a_router_is_found_and_stands_apart() -> None:
    model = build(TEXT, two=np.array([2]), **WEIGHTS)
    assert [group.name for group in find_products(model)] == ["backbone.router+backbone.up"]
    assert router_weights(model) == ("backbone.router",)
    assert note_routers(model) == 1
    assert note_routers(model) == 0
    assert [group.name for group in find_products(model)] == ["backbone.router", "backbone.up"]


def test_a_router_of_rows_without_texts_is_found_too() -> None:
    text = """g (float[tokens, 16] x) => (float[tokens, 2] y)
    <float[tokens, 4] h, int64[tokens, 2] i> {
        h = Gemm <transB = 1> (x, backbone__router, backbone__bias)
        y, i = TopK <axis = -1> (h, two)
    }"""
    weights = {"backbone__router": random(4, 16), "backbone__bias": random(4)}
    assert router_weights(build(text, two=np.array([2]), **weights)) == ("backbone.router",)


@pytest.mark.parametrize("activation", ["Tanh (s)", "Mul (s, s)", "Where (mask, s, least)"])
def test_what_scores_go_through(activation: str) -> None:
    text = TEXT.replace("Softmax (s)", activation)
    numbers = {"mask": np.array([True, False, True, True]), "least": np.array(-1e9, np.float32)}
    used = {name: value for name, value in numbers.items() if name in activation}
    assert router_weights(build(text, two=np.array([2]), **used, **WEIGHTS)) == ("backbone.router",)


class Routed(torch.nn.Module):
    """A router of transformers' whose tokens choose groups of experts first."""

    def __init__(self, model: str, **config: Any) -> None:
        super().__init__()
        module, name = f"transformers.models.{model}.modeling_{model}", model.title().replace("_", "")
        made = getattr(transformers, f"{name}Config")(
            hidden_size=16,
            num_attention_heads=4,
            n_routed_experts=8,
            n_group=4,
            topk_group=2,
            num_experts_per_tok=2,
            **config,
        )
        self.backbone = getattr(importlib.import_module(module), f"{name}TopkRouter")(made)

    def forward(self, rows: torch.Tensor) -> Any:
        """Choose for (num_tokens, hidden_size)."""
        return self.backbone(rows)[1:]


@pytest.mark.filterwarnings("ignore")  # torch's exporter's own
@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}),
        ("deepseek_v2", {"topk_method": "greedy"}),
        ("deepseek_v3", {}),
    ],
)
def test_groups_of_experts_are_chosen_by_a_router(model: str, config: dict[str, Any]) -> None:
    rows = torch.randn(6, 16)
    shapes = {"rows": {0: torch.export.Dim("num_tokens", min=2)}}
    program = torch.export.export(Routed(model, **config).eval(), (), kwargs={"rows": rows}, dynamic_shapes=shapes)
    exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    run_passes(exported.model, SEMANTIC_PASSES)
    choosing = [node for node in exported.model.graph if node.op_type == "TopK"]
    assert len(choosing) == {"greedy": 1, "group_limited_greedy": 2}.get(config.get("topk_method", ""), 3)
    assert router_weights(exported.model) == ("backbone.weight",)
    assert all(_product_behind(node.inputs[0]) is not None for node in choosing)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("t = Softmax (s)", "r = MatMul (x, backbone__other)\n t = Mul (s, r)"),  # two products decide
        ("t = Softmax (s)", "r = ReduceSum <keepdims = 1> (x, minus)\n t = Mul (s, r)"),
        ("h = MatMul (x, backbone__router)", "h = MatMul (x, head__router)"),
        ("t = Softmax (s)", "t = Erf (s)"),
        ("TopK <axis = -1>", "TopK <axis = 1>"),  # rows, not columns
        ("y, i = TopK <axis = -1> (t, two)", "y = Slice (t, zero, two, minus)"),
    ],
)
def test_what_chooses_nothing_is_none(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    text = text.replace("t, int64", "t, float[batch, length, n] r, int64")
    numbers = {"two": np.array([2]), "zero": np.array([0]), "minus": np.array([-1])}
    weights = {**WEIGHTS, "head__router": random(16, 4), "backbone__other": random(16, 4)}
    used = {name: value for name, value in {**numbers, **weights}.items() if name in text.partition("{")[2]}
    model = build(text, **used)
    assert router_weights(model) == ()
    assert note_routers(model) == 0
