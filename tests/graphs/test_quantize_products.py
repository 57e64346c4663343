"""Products in 8 bits: what each scheme computes, what is found, what is left alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from little_graphs import build, ops, random

from poolgraph.graphs.pipeline import EXACT_INT8
from poolgraph.graphs.products import find_products
from poolgraph.graphs.quantize_products import Recipe, Scheme, join_weights, quantize_products, quantize_weights
from poolgraph.graphs.unflatten_products import unflatten_products
from poolgraph.graphs.watch import watch_sources
from poolgraph.runtime.session import build_session_options

TWO = """g (float[batch, length, 8] x) => (float[batch, length, 6] y, float[batch, length, 4] z) {
    p = MatMul (x, backbone__0__gate__weight)
    y = Add (p, backbone__0__gate__bias)
    z = MatMul (x, backbone__0__up__weight)
}"""
WEIGHTS = {
    "backbone__0__gate__weight": random(8, 6),
    "backbone__0__gate__bias": random(6, seed=1),
    "backbone__0__up__weight": random(8, 4, seed=2),
}
NAME = "backbone.0.gate.weight+backbone.0.up.weight"
ROWS = random(3, 5, 8, seed=3)


def run(model: ir.Model, entries: Mapping[str, str] = EXACT_INT8, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run on ONNX Runtime, with a variant's session options."""
    options = build_session_options(onnxruntime, entries, 1)
    disabled = entries.get("disabled_optimizers", "").split(",")
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, disabled_optimizers=disabled).run(None, feeds)


def two() -> ir.Model:
    return build(TWO, **WEIGHTS)


def expected(scheme: Scheme, smoothing: np.ndarray | None, correction: np.ndarray | None) -> np.ndarray:
    """What the scheme says, in numpy."""
    joined = np.concatenate([WEIGHTS["backbone__0__gate__weight"], WEIGHTS["backbone__0__up__weight"]], axis=1)
    factor = np.ones(8, dtype=np.float32) if smoothing is None else smoothing
    joined, rows = joined * factor[:, None], ROWS / factor
    scales = np.abs(joined).max(0) / 127
    weight = np.rint(joined / scales) * scales
    if scheme == "static":
        rows = (np.clip(np.rint(rows / 0.03) + 100, 0, 255) - 100) * 0.03
    if scheme == "token":
        own = np.abs(rows).max(-1, keepdims=True) / 127
        rows = np.rint(rows / own) * own
    bias = np.concatenate([WEIGHTS["backbone__0__gate__bias"], np.zeros(4)])
    return rows @ weight + bias + (0 if correction is None else correction)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("scheme", ["static", "token", "weights"])
def test_each_scheme_computes_what_it_says(scheme: Scheme, smoothed: bool) -> None:
    smoothing = np.linspace(0.5, 2.0, 8, dtype=np.float32) if smoothed else None
    correction = random(10, seed=4) if smoothed else None
    model = two()
    recipe = Recipe(scheme=scheme, scale=0.03, zero_point=100, smoothing=smoothing, correction=correction)
    quantize = quantize_products({NAME: recipe})
    assert quantize.__name__ == "quantize_products"
    assert (quantize(model), quantize(model)) == (1, 0)
    entries = {"graph_optimization_level": "disable"} if scheme == "weights" else EXACT_INT8
    found = np.concatenate(run(model, entries, x=ROWS), axis=-1)
    np.testing.assert_allclose(found, expected(scheme, smoothing, correction), atol=2e-5)
    matrix = next(value for name, value in model.graph.initializers.items() if name.endswith(".int8"))
    assert (matrix.dtype, tuple(matrix.shape)) == (ir.DataType.INT8, (8, 10))


@pytest.mark.parametrize("scheme", ["static", "token"])
def test_sums_of_the_largest_products_do_not_saturate(scheme: Scheme) -> None:
    """Two of 255 * 127 are beyond 16 bits, in which processors without VNNI add them up."""
    model = build(TWO, **{name: np.ones_like(array) for name, array in WEIGHTS.items()})
    quantize_products({NAME: Recipe(scheme=scheme, scale=1 / 255, zero_point=0)})(model)
    found = run(model, x=np.ones((1, 2, 8), dtype=np.float32))
    np.testing.assert_allclose(np.concatenate(found, axis=-1)[0, 0], [9.0] * 6 + [8.0] * 4, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["static", "token"])
def test_a_rows_bits_do_not_depend_on_the_batch(scheme: Scheme) -> None:
    model = two()
    quantize_products({NAME: Recipe(scheme=scheme, scale=0.03)})(model)
    together = run(model, x=ROWS)[0]
    assert all(np.array_equal(run(model, x=ROWS[i : i + 1])[0][0], together[i]) for i in range(3))


def test_rows_of_zeros_and_ranges_that_are_cut() -> None:
    model = two()
    quantize_products({NAME: Recipe(scheme="token")})(model)
    np.testing.assert_array_equal(
        run(model, x=np.zeros((1, 2, 8), dtype=np.float32))[0][0, 0], WEIGHTS["backbone__0__gate__bias"]
    )
    model = two()
    quantize_products({NAME: Recipe(scheme="static", scale=0.01, zero_point=0)})(model)
    lowest = run(model, x=np.full((1, 1, 8), -9, dtype=np.float32))[1]
    np.testing.assert_array_equal(lowest, np.zeros((1, 1, 4)))


def test_groups_without_a_recipe_and_other_products_stay() -> None:
    model = two()
    assert quantize_products({"another": Recipe(scheme="token")})(model) == 0
    assert ops(model) == ["MatMul", "Add", "MatMul"]
    head = build(TWO.replace("backbone__", "head__"), **{k.replace("backbone", "head"): v for k, v in WEIGHTS.items()})
    assert find_products(head) == ()
    pooled = build(
        "g (float[batch, 8] x) => (float[batch, 4] y) { y = MatMul (x, backbone__w) }", backbone__w=random(8, 4)
    )
    assert find_products(pooled) == ()


def test_layers_that_share_weights_are_told_apart() -> None:
    model = build(
        """g (float[batch, length, 8] x) => (float[batch, length, 8] z)
        <float[batch, length, 8] y> {
            y = MatMul (x, backbone__w)
            z = MatMul (y, backbone__w)
        }""",
        backbone__w=random(8, 8),
    )
    assert [group.name for group in find_products(model)] == ["backbone.w", "backbone.w#2"]
    assert watch_sources(model) == {"backbone.w": "x", "backbone.w#2": "y"}


def test_weights_are_rounded_by_column() -> None:
    matrix = random(16, 5) * np.array([1, 10, 0.1, 1e-3, 0], dtype=np.float32)
    integers, scales = quantize_weights(matrix)
    assert (integers.dtype, np.abs(integers).max(0).tolist()) == (np.int8, [127, 127, 127, 127, 0])
    assert np.abs(integers * scales - matrix).max() <= scales.max() / 2 * 1.001
    assert np.isfinite(scales).all()
    assert join_weights([ir.tensor(matrix), ir.tensor(matrix)], None).shape == (16, 10)


FLAT = """g (float[batch, length, 8] x) => (float[batch, length, 6] y) {
    rows = Constant <value_ints = [-1, 8]> ()
    flat = Reshape (x, rows)
    product = Gemm <GEMM> (flat, backbone__w, backbone__b)
    shape = Constant <value_ints = [0, -1, 6]> ()
    whole = Constant <value_ints = [3, 5, 6]> ()
    y = Reshape (product, whole)
}"""


@pytest.mark.parametrize(("attributes", "rewrites"), [("alpha = 1.0, transB = 0", 1), ("alpha = 0.5", 0)])
def test_flattened_products_get_their_axes_back(attributes: str, rewrites: int) -> None:
    weights = {"backbone__w": random(8, 6), "backbone__b": random(6, seed=1)}
    model = build(FLAT.replace("GEMM", attributes), **weights)
    before = run(model, x=ROWS)[0]
    assert (unflatten_products(model), unflatten_products(model)) == (rewrites, 0)
    np.testing.assert_allclose(run(model, x=ROWS)[0], before, atol=1e-6)
    assert len(find_products(model)) == rewrites


@pytest.mark.parametrize("native", [False, True])
def test_a_product_of_another_products_rows(native: bool) -> None:
    """As of ELECTRA's and ALBERT's embeddings, which are projected right before the first layer's projections."""
    model = build(
        """g (float[batch, length, 8] x) => (float[batch, length, 3] z)
        <float[batch, length, 6] p, float[batch, length, 6] y> {
            p = MatMul (x, backbone__0__gate__weight)
            y = Add (p, backbone__0__gate__bias)
            z = MatMul (y, backbone__1__weight)
        }""",
        **{name: WEIGHTS[name] for name in ("backbone__0__gate__weight", "backbone__0__gate__bias")},
        backbone__1__weight=random(6, 3, seed=5),
    )
    (plain,) = run(model, x=ROWS)
    recipes = {name: Recipe(scheme="token") for name in ("backbone.0.gate.weight", "backbone.1.weight")}
    assert quantize_products(recipes, native=native)(model) == 2
    data = ir.to_proto(model).SerializeToString()
    assert len(data) > 0
    if not native:
        (found,) = run(model, x=ROWS)
        np.testing.assert_allclose(found, plain, atol=0.05 * np.abs(plain).max())
