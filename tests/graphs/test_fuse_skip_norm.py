"""Norms that take in the residual sum in front of them and the bias in front of that: which do, and what they read."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from cuda_operators import run_reference
from little_graphs import SIZE, X, assert_close, build, ops, random, run

from poolgraph.graphs.fuse_skip_norm import fuse_skip_norms

ROWS = "float[batch_size,sequence_length,8]"
TEXT = """g (ROWS x, ROWS r) => (ROWS y, ROWS z)
<ROWS p, ROWS s, ROWS n, float[batch_size,1,8] t, float[batch_size,sequence_length,1] u> { BODY }"""
FEEDS = {"x": X, "r": random(*X.shape, seed=9)}
BIASED = "p = Add(x, b)  s = Add(p, r)"
NORM = "n = LayerNormalization<axis=-1>(s, gamma)  y = Neg(n)"


def norm(body: str, rows: str = ROWS, **shapes: tuple[int, ...]) -> ir.Model:
    """A sum, a norm and what reads them; keywords are shapes of weights other than of a vector."""
    sizes = {"b": (SIZE,), "gamma": (SIZE,), **shapes}
    weights = {name: random(*shape, seed=seed) for seed, (name, shape) in enumerate(sizes.items())}
    text = TEXT.replace("BODY", body).replace("ROWS", rows)
    return build(text, **{name: array for name, array in weights.items() if f", {name})" in body})


FUSED = {
    "a bias": (f"{BIASED}  {NORM}  z = Abs(n)", {}, ["x", "r", "gamma", None, "b"]),
    "a bias on the right": (f"p = Add(x, b)  s = Add(r, p)  {NORM}  z = Abs(n)", {}, ["x", "r", "gamma", None, "b"]),
    "no bias": (f"s = Add(x, r)  {NORM}  z = Abs(n)", {}, ["x", "r", "gamma"]),
    "a biased sum that others read": (f"{BIASED}  {NORM}  z = Neg(p)", {}, ["p", "r", "gamma"]),
    "a bias of one number": (f"{BIASED}  {NORM}  z = Abs(n)", {"b": (1,)}, ["p", "r", "gamma"]),
    "a sum that is read before": (f"{BIASED}  z = Neg(s)  {NORM}", {}, ["x", "r", "gamma", None, "b"]),
}


@pytest.mark.parametrize(("body", "shapes", "reads"), FUSED.values(), ids=FUSED)
def test_what_a_norm_takes_in(body: str, shapes: dict[str, tuple[int, ...]], reads: list[str | None]) -> None:
    model = norm(body, **shapes)
    expected = run(model, **FEEDS)
    assert fuse_skip_norms(model) == 1
    (fused,) = (node for node in model.graph if node.op_type == "SkipLayerNormalization")
    assert [value and value.name for value in fused.inputs] == reads
    assert_close(expected, list(run_reference(model, FEEDS).values()))


@pytest.mark.parametrize(("attribute", "epsilon"), [("", 1e-5), (", epsilon=0.25", 0.25)])
def test_the_norm_keeps_its_epsilon(attribute: str, epsilon: float) -> None:
    model = norm(f"{BIASED}  {NORM.replace('axis=-1', f'axis=-1{attribute}')}  z = Abs(n)")
    assert fuse_skip_norms(model) == 1
    (fused,) = (node for node in model.graph if node.op_type == "SkipLayerNormalization")
    assert fused.attributes["epsilon"].as_float() == pytest.approx(epsilon)


DECLINED = {
    "a sum that is an answer": ("z = Add(x, r)  n = LayerNormalization<axis=-1>(z, gamma)  y = Neg(n)", ROWS, {}),
    "rows of two axes": (f"s = Add(x, r)  {NORM}  z = Abs(n)", "float[rows,8]", {}),
    "a weight of one number": (f"s = Add(x, r)  {NORM}  z = Abs(n)", ROWS, {"gamma": (1,)}),
    "a sum with what is stored": (f"s = Add(x, w)  {NORM}  z = Abs(r)", "float[2,3,8]", {"w": (2, 3, SIZE)}),
    "a row for all": (f"t = Identity(r)  s = Add(x, t)  {NORM}  z = Abs(n)", ROWS, {}),
    "a number a row": (f"u = Identity(r)  s = Add(u, x)  {NORM}  z = Abs(n)", ROWS, {}),
}


@pytest.mark.parametrize(("body", "rows", "shapes"), DECLINED.values(), ids=DECLINED)
def test_sums_that_stay(body: str, rows: str, shapes: dict[str, tuple[int, ...]]) -> None:
    model = norm(body, rows, **shapes)
    before = ops(model)
    assert fuse_skip_norms(model) == 0
    assert ops(model) == before
