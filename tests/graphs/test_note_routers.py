"""Products that choose experts: found behind what their scores go through, and set apart from the experts'."""

from __future__ import annotations

import numpy as np
import pytest
from little_graphs import build, random

from poolgraph.graphs.note_routers import note_routers, router_weights
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("t = Softmax (s)", "t = Mul (s, s)"),  # two values decide
        ("h = MatMul (x, backbone__router)", "h = MatMul (x, head__router)"),
        ("t = Softmax (s)", "t = Tanh (s)"),
        ("TopK <axis = -1>", "TopK <axis = 1>"),  # rows, not columns
        ("y, i = TopK <axis = -1> (t, two)", "y = Slice (t, zero, two, minus)"),
    ],
)
def test_what_chooses_nothing_is_none(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    numbers = {"two": np.array([2]), "zero": np.array([0]), "minus": np.array([-1])}
    weights = {**WEIGHTS, "head__router": random(16, 4)}
    used = {name: value for name, value in {**numbers, **weights}.items() if name in text.partition("{")[2]}
    model = build(text, **used)
    assert router_weights(model) == ()
    assert note_routers(model) == 0
