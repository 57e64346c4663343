"""Experts that are all computed become those that count: the same numbers, and nothing of another shape."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from little_graphs import ops, random
from native_graphs import needs_native
from native_passes import apply, each_kind, native, run

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.fuse_activations import fuse_activations, fuse_gates
from poolgraph.graphs.fuse_experts import fuse_experts
from poolgraph.graphs.fuse_residual_norm import fuse_residuals
from poolgraph.graphs.native import FUSED, Activation, Gate, ProductOperators, native_nodes, number

pytestmark = needs_native

ROWS = random(2, 7, 16, seed=3)
ROUTED = np.where(random(2, 7, 3, seed=8) > 0.3, random(2, 7, 3, seed=9), 0).astype(np.float32)
SHAPES = {"four": np.array([0, 0, 3, 8]), "halves": np.array([0, 0, 3, 16]), "three": np.array([0, 0, 24])}
WEIGHTS = {
    "backbone__up": random(16, 24),
    "backbone__both": random(16, 48),
    "backbone__down": random(24, 16, seed=1),
    "last": np.array([-1]),
}

EXPERTS = """g (float[batch, length, 16] x, float[batch, length, 3] w) => (float[batch, length, 16] y)
<float[batch, length, 24] h, float[batch, length, 24] a, float[batch, length, 3, 8] e, float[batch, length, 3, 1] u,
 float[batch, length, 3, 8] m, float[batch, length, 24] f, float[batch, length, 16] d> {
    h = MatMul (x, backbone__up)
    a = Relu (h)
    e = Reshape (a, four)
    u = Unsqueeze (w, last)
    m = Mul (e, u)
    f = Reshape (m, three)
    d = MatMul (f, backbone__down)
    y = Add (x, d)
}"""

GATED = """g (float[batch, length, 16] x, float[batch, length, 3] w) => (float[batch, length, 16] y)
<float[batch, length, 48] h, float[batch, length, 3, 16] b, float[batch, length, 3, 8] p, float[batch, length, 3, 8] q,
 float[batch, length, 3, 8] a, float[batch, length, 3, 8] e, float[batch, length, 3, 1] u, float[batch, length, 3, 8] m,
 float[batch, length, 24] f> {
    h = MatMul (x, backbone__both)
    b = Reshape (h, halves)
    p, q = Split <axis = -1, num_outputs = 2> (b)
    a = Relu (p)
    e = Mul (a, q)
    u = Unsqueeze (w, last)
    m = Mul (u, e)
    f = Reshape (m, three)
    y = MatMul (f, backbone__down)
}"""

SWIGLU = """g (float[batch, length, 16] x, float[batch, length, 3] w) => (float[batch, length, 16] y)
<float[batch, length, 48] h, float[batch, length, 3, 16] b, float[batch, length, 3, 8] p, float[batch, length, 3, 8] q,
 float[batch, length, 3, 8] r, float[batch, length, 3, 8] s, float[batch, length, 3, 8] k, float[batch, length, 3, 8] t,
 float[batch, length, 3, 8] l, float[batch, length, 3, 8] a, float[batch, length, 3, 8] e, float[batch, length, 3, 1] u,
 float[batch, length, 3, 8] m, float[batch, length, 24] f> {
    h = MatMul (x, backbone__both)
    b = Reshape (h, halves)
    p, q = Split <axis = -1, num_outputs = 2> (b)
    r = Clip (p, , most)
    s = Clip (q, least, most)
    k = Mul (r, alpha)
    t = Sigmoid (k)
    l = Mul (r, t)
    a = Add (s, beta)
    e = Mul (a, l)
    u = Unsqueeze (w, last)
    m = Mul (u, e)
    f = Reshape (m, three)
    y = MatMul (f, backbone__down)
}"""

EVERY_OTHER = SWIGLU.replace(
    "p, q = Split <axis = -1, num_outputs = 2> (b)",
    "p = Slice (b, zero, far, three_axis, two)\n    q = Slice (b, one, far, three_axis, two)",
)

NUMBERS = {
    "most": np.float32(2.5),
    "least": np.float32(-2.5),
    "alpha": np.float32(1.5),
    "beta": np.float32(1),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "far": np.array([2**62]),
    "three_axis": np.array([3]),
}

GATES = {EXPERTS: Gate.NONE, GATED: Gate.FIRST, SWIGLU: Gate.FIRST, EVERY_OTHER: Gate.EVEN}


def experts(kind: ProductOperators, text: str, **numbers: Any) -> ir.Model:
    stored = {**WEIGHTS, **SHAPES, **NUMBERS, **numbers}
    used = {name: np.asarray(array) for name, array in stored.items() if re.search(rf"[(,] *{name}\b", text)}
    model = native(kind, text, **used)
    fuse_activations(model)
    fuse_gates(model)
    return model


@each_kind
@pytest.mark.parametrize("text", [EXPERTS, GATED, SWIGLU, EVERY_OTHER], ids=["plain", "gated", "swiglu", "even"])
def test_they_become_one_operator_with_the_same_answers(kind: ProductOperators, text: str) -> None:
    model = experts(kind, text)
    (expected,) = run(model, x=ROWS, w=ROUTED)
    assert apply(model, (fuse_experts,)) == [1]
    remove_dead_nodes(model)
    fuse_residuals(model)
    assert ops(model) == [kind.experts]
    (node,) = native_nodes(model, kind.experts)
    assert number(node, "num_experts") == 3
    assert number(node, "up_activation") == (Activation.RELU if text in {EXPERTS, GATED} else Activation.SWIGLU)
    assert number(node, "up_gate") == GATES[text]
    (found,) = run(model, x=ROWS, w=ROUTED)
    # The rows of all experts share one range in bytes; each expert's own has one here.
    np.testing.assert_allclose(found, expected, atol=(1e-6 if kind is FUSED else 3e-2) * np.abs(expected).max(), rtol=0)


def test_weights_of_another_shape_stay() -> None:
    for old, new in [
        ("float[batch, length, 3] w", "float[batch, length, 8] w"),  # by column, not by expert
        ("float[batch, length, 3, 1] u", "float[batch, length, 1, 8] u"),
    ]:
        text = EXPERTS.replace(old, new).replace("float[batch, length, 3, 1] u", "float[batch, length, 1, 8] u")
        text = text.replace("u = Unsqueeze (w, last)", "u = Unsqueeze (w, before)")
        used = {name: array for name, array in {**WEIGHTS, **SHAPES}.items() if name in text and name != "last"}
        model = native(FUSED, text, before=np.array([-2]), **used)
        fuse_activations(model)
        assert fuse_experts(model) == 0


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (SWIGLU, {"least": -2.0}),
        (SWIGLU, {"most": np.inf, "least": -np.inf}),
        (SWIGLU, {"alpha": -1.5}),
        (SWIGLU.replace("p, , most", "p, least, most"), {}),
        (SWIGLU.replace("t = Sigmoid (k)", "t = Tanh (k)"), {}),
        (SWIGLU.replace("l = Mul (r, t)", "l = Mul (k, t)"), {}),
        (SWIGLU.replace("e = Mul (a, l)", "e = Add (a, l)"), {}),
        (EVERY_OTHER, {"one": np.array([0])}),
    ],
)
def test_what_is_not_quite_that_gate_stays(text: str, numbers: dict[str, Any]) -> None:
    typed = {name: value if isinstance(value, np.ndarray) else np.float32(value) for name, value in numbers.items()}
    model = experts(FUSED, text, **typed)
    expected = run(model, x=ROWS, w=ROUTED)
    assert fuse_experts(model) == 0
    assert all(np.array_equal(*pair) for pair in zip(run(model, x=ROWS, w=ROUTED), expected, strict=True))


def test_what_is_done_to_the_sum_is_not_done_to_each_expert() -> None:
    text = EXPERTS.replace("y = Add (x, d)", "y = Relu (d)")
    model = experts(FUSED, text)
    assert [number(node, "activation") for node in native_nodes(model, FUSED.matmul)] == [Activation.RELU] * 2
    assert fuse_experts(model) == 0


@pytest.mark.parametrize("value", ["e", "m", "f", "a"])
def test_rows_that_something_else_reads_stay(value: str) -> None:
    sizes = {"e": "3, 8", "m": "3, 8", "f": "24", "a": "24"}
    text = EXPERTS.replace("16] y)", f"16] y, float[batch, length, {sizes[value]}] z)", 1)
    model = experts(FUSED, text.replace("y = Add (x, d)", f"y = Add (x, d)\n    z = Neg ({value})"))
    expected = run(model, x=ROWS, w=ROUTED)
    assert fuse_experts(model) == 0
    assert all(np.array_equal(*pair) for pair in zip(run(model, x=ROWS, w=ROUTED), expected, strict=True))
