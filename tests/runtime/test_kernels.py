"""The native products against numpy: every shape of edge, every option, the same bits in any batch."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from native_graphs import ACTIVATIONS, SWIGLU, ProductCase, native_session, needs_native, normalized
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from poolgraph.graphs.native import BFLOAT, FUSED, QUANTIZED, Activation, Gate, Norm, ProductOperators

pytestmark = [needs_native, pytest.mark.usefixtures("each_product_library")]

PLAIN = {"norm": int(Norm.NONE), "epsilon": 0.0}

each_kind = pytest.mark.parametrize("kind", [QUANTIZED, FUSED, BFLOAT], ids=lambda it: it.matmul)


def rows_of(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product_session(case: ProductCase, rows: np.ndarray, threads: int = 1, **more: Any) -> Any:
    inputs = {"rows": rows, **case.weights, **more}
    attributes = {**case.attributes(), **PLAIN}
    return native_session(case.kind.matmul, inputs, attributes, ("rows", "residual"), threads=threads)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


@each_kind
@pytest.mark.parametrize("count", [1, 5, 6, 7, 32, 33, 48, 49, 100])
@pytest.mark.parametrize("sizes", [(4, 64), (6, 3), (30, 65), (64, 130), (384, 257)], ids=str)
def test_products_of_every_size(count: int, sizes: tuple[int, int], kind: ProductOperators) -> None:
    case = ProductCase(kind=kind, in_features=sizes[0], out_features=sizes[1])
    rows = rows_of(count, sizes[0])
    assert_near(product_session(case, rows).run(None, {"rows": rows})[0], case.expected(rows))


@pytest.mark.parametrize("count", [511, 512, 513, 1100])
@pytest.mark.parametrize("sizes", [(600, 70), (256, 64), (257, 1100), (1027, 40)], ids=str)
@pytest.mark.parametrize("kind", [FUSED, BFLOAT], ids=lambda it: it.matmul)
def test_many_rows_and_steps_are_computed_in_parts(count: int, sizes: tuple[int, int], kind: ProductOperators) -> None:
    case = ProductCase(kind=kind, in_features=sizes[0], out_features=sizes[1])
    rows = rows_of(count, sizes[0])
    for threads in (1, 2):
        assert_near(product_session(case, rows, threads).run(None, {"rows": rows})[0], case.expected(rows), 2e-6)


@pytest.mark.parametrize(
    ("activation", "gate"),
    [pair for pair in itertools.product(Activation, Gate) if pair != (Activation.SWIGLU, Gate.NONE)],
    ids=lambda it: it.name,
)
@pytest.mark.parametrize(("kind", "scale"), [(QUANTIZED, 0.0), (QUANTIZED, 0.02), (FUSED, 0.0), (BFLOAT, 0.0)])
def test_schemes_activations_and_gates(
    activation: Activation, gate: Gate, kind: ProductOperators, scale: float
) -> None:
    for count, factors, bias in [(3, True, True), (50, False, False), (50, True, True)]:
        zero_point = 100 if scale else 0
        options = {"kind": kind, "scale": scale, "zero_point": zero_point, "factors": factors, "bias": bias}
        case = ProductCase(in_features=70, out_features=154, activation=activation, gate=gate, **options)
        rows = rows_of(2, count, 70)
        assert_near(product_session(case, rows).run(None, {"rows": rows})[0], case.expected(rows))


def test_activations_keep_their_tails() -> None:
    rows = np.repeat(np.linspace(-40, 40, 20001, dtype=np.float32)[:, None], 4, axis=1)
    for activation in ACTIVATIONS:
        case = ProductCase(kind=FUSED, in_features=4, out_features=4, bias=False, activation=activation)
        case.weights.update(weights=np.eye(4, dtype=np.float32))
        found = product_session(case, rows).run(None, {"rows": rows})[0]
        np.testing.assert_allclose(found, case.expected(rows), atol=3e-7, rtol=1e-6)


@pytest.mark.parametrize("activation", [it for it in ACTIVATIONS if it != Activation.NONE], ids=lambda it: it.name)
def test_activations_end_at_nothing_and_at_infinity(activation: Activation) -> None:
    rows = np.array([-np.inf, -3e38, -1e36, -1e30, -1e4, -100, 1e4, 1e30, 3e38, np.inf], dtype=np.float32)[:, None]
    case = ProductCase(kind=FUSED, in_features=1, out_features=1, bias=False, activation=activation)
    case.weights.update(weights=np.ones((1, 1), dtype=np.float32))
    found = product_session(case, rows).run(None, {"rows": rows})[0]
    np.testing.assert_allclose(found, np.where(rows < 0, 0, rows), atol=1e-30, rtol=1e-6)


def test_swiglu_is_bounded() -> None:
    values = np.array([-3e38, -1e4, -100, -60, -20, -7.5, -7, -1, 0, 1, 7, 7.5, 100, 1e30, 3e38], np.float32)
    rows = np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2)
    case = ProductCase(
        kind=FUSED, in_features=2, out_features=2, bias=False, activation=Activation.SWIGLU, gate=Gate.FIRST
    )
    case.weights.update(weights=np.eye(2, dtype=np.float32))
    found = product_session(case, rows).run(None, {"rows": rows})[0]
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found, case.expected(rows), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", [Norm.LAYER, Norm.ROOT_MEAN_SQUARE], ids=lambda it: it.name)
@pytest.mark.parametrize(("residual", "bias", "outputs"), list(itertools.product([True, False], [True, False], [1, 2])))
@each_kind
def test_residuals_and_norms(kind: ProductOperators, norm: Norm, residual: bool, bias: bool, outputs: int) -> None:
    case = ProductCase(kind=kind, in_features=40, out_features=100)
    weight, shift = rows_of(100, seed=1), rows_of(100, seed=2) if bias else None
    attributes = {**case.attributes(), "norm": int(norm), "epsilon": 1e-5}
    for count in (2, 70):
        rows, added = rows_of(count, 40), rows_of(count, 100, seed=3) if residual else None
        inputs = {"rows": rows, **case.weights, "residual": added, "weight": weight, "shift": shift}
        session = native_session(kind.matmul, inputs, attributes, ("rows", "residual"), outputs)
        found = session.run(None, {"rows": rows} | ({"residual": added} if residual else {}))
        total = case.expected(rows) + (added if residual else 0)
        assert_near(found[0], normalized(total, norm, weight, shift, 1e-5))
        assert len(found) == outputs
        if outputs == 2:
            assert_near(found[1], total)


@each_kind
@pytest.mark.parametrize("count", [1, 32, 33, 130, 530])
@pytest.mark.parametrize("gate", [Gate.NONE, Gate.SECOND], ids=lambda it: it.name)
def test_a_feed_forward_has_the_bits_of_its_two_products(count: int, gate: Gate, kind: ProductOperators) -> None:
    options = {"activation": Activation.SILU, "gate": gate, "factors": True, "seed": 1}
    up = ProductCase(kind=kind, in_features=36, out_features=144, **options)
    down = ProductCase(kind=kind, in_features=up.width, out_features=36, scale=0.01, zero_point=30, seed=2)
    rows, weight = rows_of(count, 36), rows_of(36, seed=3)
    inputs = {"rows": rows}
    inputs |= {f"up_{name}": array for name, array in up.weights.items()}
    inputs |= {f"down_{name}": array for name, array in down.weights.items()}
    inputs |= {"residual": rows, "weight": weight, "shift": None}
    attributes = {**up.attributes("up_"), **down.attributes("down_"), "norm": int(Norm.LAYER), "epsilon": 1e-6}
    found = native_session(kind.feed_forward, inputs, attributes, ("rows", "residual"), 2).run(
        None, {"rows": rows, "residual": rows}
    )
    between = product_session(up, rows).run(None, {"rows": rows})[0]
    total = product_session(down, between).run(None, {"rows": between})[0] + rows
    np.testing.assert_array_equal(found[1], total)
    assert_near(found[0], normalized(total.astype(np.float64), Norm.LAYER, weight, None, 1e-6))


def feed_forward_session(kind: ProductOperators, threads: int) -> Any:
    """A gated feed-forward layer with residual and norm, of 96 features."""
    options = {"activation": Activation.GELU, "gate": Gate.FIRST, "factors": True}
    up = ProductCase(kind=kind, in_features=96, out_features=400, **options)
    down = ProductCase(kind=kind, in_features=200, out_features=96, seed=1)
    rows = rows_of(1, 96)
    inputs = {"rows": rows, **{f"up_{name}": array for name, array in up.weights.items()}}
    inputs |= {f"down_{name}": array for name, array in down.weights.items()}
    inputs |= {"residual": rows, "weight": rows_of(96, seed=3), "shift": rows_of(96, seed=4)}
    attributes = {**up.attributes("up_"), **down.attributes("down_"), "norm": int(Norm.LAYER), "epsilon": 1e-6}
    return native_session(kind.feed_forward, inputs, attributes, ("rows", "residual"), threads=threads)


def matmul_session(kind: ProductOperators, threads: int) -> Any:
    """A product with activation, residual and norm, of 96 features."""
    case = ProductCase(kind=kind, in_features=96, out_features=96, activation=Activation.SILU)
    inputs = {"rows": rows_of(1, 96), **case.weights, "residual": rows_of(1, 96), "weight": rows_of(96, seed=3)}
    attributes = {**case.attributes(), "norm": int(Norm.ROOT_MEAN_SQUARE), "epsilon": 1e-6}
    return native_session(kind.matmul, inputs, attributes, ("rows", "residual"), threads=threads)


@each_kind
@pytest.mark.parametrize("make", [feed_forward_session, matmul_session])
def test_bits_do_not_depend_on_the_batch_or_the_threads(make: Any, kind: ProductOperators) -> None:
    rows, one, two = rows_of(531, 96), make(kind, 1), make(kind, 2)

    def run(session: Any, part: np.ndarray) -> np.ndarray:
        return session.run(None, {"rows": part, "residual": part})[0]

    together = run(one, rows)
    np.testing.assert_array_equal(run(two, rows), together)
    for first, last in [(0, 1), (5, 37), (100, 131), (510, 531)]:
        for session in (one, two):
            np.testing.assert_array_equal(run(session, rows[first:last]), together[first:last])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run(two, rows), range(24)):
            np.testing.assert_array_equal(found, together)


LONG_NANS = [float(np.uint32(bits).view(np.float32)) for bits in (0x7FFFFFFF, 0xFFFFFFFF)]
"""Rounded up as numbers are, their bits would be those of zeros."""


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, *LONG_NANS])
@pytest.mark.parametrize(("kind", "scale"), [(QUANTIZED, 0.0), (QUANTIZED, 0.02), (FUSED, 0.0), (BFLOAT, 0.0)])
def test_what_is_not_finite_stays_visible_in_its_row_alone(broken: float, kind: ProductOperators, scale: float) -> None:
    case = ProductCase(kind=kind, in_features=20, out_features=20, scale=scale, activation=Activation.GELU)
    rows = rows_of(9, 20)
    rows[4, 17] = broken
    found = product_session(case, rows).run(None, {"rows": rows})[0]
    # A float's infinity may be one still, or the 0 or -0 that GELU makes of the negative one.
    assert np.isnan(found[4]).all() if kind is QUANTIZED or np.isnan(broken) else not np.isfinite(found[4]).all()
    assert np.isfinite(np.delete(found, 4, axis=0)).all()


def test_rows_of_zeros_and_of_huge_numbers() -> None:
    case = ProductCase(in_features=20, out_features=20)
    rows = np.stack([np.zeros(20), np.full(20, 1e30), np.linspace(-3e35, 3e35, 20)]).astype(np.float32)
    found = product_session(case, rows).run(None, {"rows": rows})[0]
    np.testing.assert_array_equal(found[0], case.weights["bias"])
    np.testing.assert_allclose(found[1:], case.expected(rows)[1:], rtol=1e-5)
    far = ProductCase(in_features=20, out_features=20, scale=0.01, zero_point=3)
    np.testing.assert_allclose(product_session(far, rows).run(None, {"rows": rows})[0], far.expected(rows), rtol=1e-5)


@each_kind
def test_no_rows_give_no_rows(kind: ProductOperators) -> None:
    case = ProductCase(kind=kind)
    empty = np.zeros((2, 0, 64), dtype=np.float32)
    assert product_session(case, empty).run(None, {"rows": empty})[0].shape == (2, 0, 64)


@each_kind
def test_rows_and_residuals_of_another_size_are_refused(kind: ProductOperators) -> None:
    case = ProductCase(kind=kind)
    rows = rows_of(3, 63)
    with pytest.raises((Fail, RuntimeException), match="rows have 63 features, the weights 64"):
        product_session(case, rows).run(None, {"rows": rows})
    rows, residual = rows_of(3, 64), rows_of(2, 64)
    with pytest.raises((Fail, RuntimeException), match="residual's shape"):
        product_session(case, rows, residual=residual).run(None, {"rows": rows, "residual": residual})


@pytest.mark.parametrize("name", ["scales", "bias", "factors", "weight", "shift"])
def test_constants_of_another_size_are_refused(name: str) -> None:
    case = ProductCase(factors=True)
    inputs = {"rows": rows_of(3, 64), **case.weights, "residual": None, "weight": rows_of(64), "shift": rows_of(64)}
    inputs[name] = rows_of(1)
    attributes = {**case.attributes(), "norm": int(Norm.LAYER), "epsilon": 1e-6}
    with pytest.raises((Fail, RuntimeException), match="must have 64 numbers"):
        native_session(QUANTIZED.matmul, inputs, attributes, ("rows",))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_matrix_is_refused(shape: tuple[int, int]) -> None:
    inputs = {"rows": rows_of(3, shape[0]), "weights": rows_of(*shape)}
    with pytest.raises((Fail, RuntimeException), match="must be a constant matrix, and not empty"):
        native_session(FUSED.matmul, inputs, {"activation": 0, "gate": 0, **PLAIN}, ("rows",))


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"gate": 1}, 1, "as many columns as it opens"),
        ({"gate": 2}, 5, "as many columns as it opens"),
        ({"gate": 3}, 5, "as many columns as it opens"),
        ({"gate": 4}, 4, "no such gate"),
        ({"gate": -1}, 4, "no such gate"),
        ({"activation": 6}, 4, "no such activation"),
        ({"activation": 5, **SWIGLU}, 4, "SwiGLU has a gate, and alpha and limit above 0"),
        ({"activation": 5, "gate": 1, **SWIGLU, "alpha": 0.0}, 4, "SwiGLU has a gate, and alpha and limit above 0"),
        ({"activation": 5, "gate": 1, **SWIGLU, "limit": float("nan")}, 4, "alpha and limit above 0"),
        ({"activation": 2**32}, 4, "no such activation"),
    ],
)
def test_gates_and_activations_that_are_none_are_refused(options: dict[str, Any], columns: int, message: str) -> None:
    inputs = {"rows": rows_of(3, 4), "weights": rows_of(4, columns)}
    with pytest.raises((Fail, RuntimeException), match=message):
        native_session(FUSED.matmul, inputs, {"activation": 0, "gate": 0, **PLAIN, **options}, ("rows",))


def test_a_bias_that_is_fed_and_a_sum_without_a_norm_are_refused() -> None:
    case, rows = ProductCase(), rows_of(3, 64)
    with pytest.raises((Fail, RuntimeException), match="must be constant"):
        native_session(
            QUANTIZED.matmul, {"rows": rows, **case.weights}, {**case.attributes(), **PLAIN}, ("rows", "bias")
        )
    session = native_session(
        QUANTIZED.matmul, {"rows": rows, **case.weights}, {**case.attributes(), **PLAIN}, ("rows",), 2
    )
    with pytest.raises((Fail, RuntimeException), match="needs a norm"):
        session.run(None, {"rows": rows})
