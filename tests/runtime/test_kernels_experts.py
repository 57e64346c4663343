"""The native mixture of experts against numpy: those alone that count, and the same bits in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_graphs import ProductCase, native_session, needs_native, normalized
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from poolgraph.graphs.native import BFLOAT, FUSED, QUANTIZED, Activation, Gate, Norm, ProductOperators

pytestmark = [needs_native, pytest.mark.usefixtures("each_product_library")]

HIDDEN, INNER = 70, 45

TOLERANCES = {QUANTIZED.experts: 2e-2, BFLOAT.experts: 1e-3, FUSED.experts: 2e-6}
"""Rounded rows of float32 and of float64 may differ by a step."""

each_kind = pytest.mark.parametrize("kind", [QUANTIZED, FUSED, BFLOAT], ids=lambda it: it.experts)


class ExpertsCase:
    """Experts with random weights, and their answer from products of one expert each."""

    def __init__(
        self,
        kind: ProductOperators,
        num_experts: int,
        gate: Gate = Gate.NONE,
        scale: float = 0.0,
        activation: Activation = Activation.GELU,
    ) -> None:
        self.kind, self.num_experts = kind, num_experts
        columns = INNER if gate == Gate.NONE else 2 * INNER
        options: dict[str, Any] = {"kind": kind, "scale": scale, "zero_point": 100 if scale else 0, "factors": True}
        self.up = ProductCase(
            in_features=HIDDEN, out_features=num_experts * columns, activation=activation, gate=gate, **options
        )
        self.down = ProductCase(in_features=num_experts * INNER, out_features=HIDDEN, seed=1, **options)

    def inputs(self, rows: np.ndarray, weights: np.ndarray, **rest: Any) -> dict[str, Any]:
        ups = {f"up_{name}": value for name, value in self.up.weights.items()}
        downs = {f"down_{name}": value for name, value in self.down.weights.items()}
        return {"rows": rows, "weights": weights, **ups, **downs, **rest}

    def attributes(self) -> dict[str, Any]:
        pairs = {**self.up.attributes("up_"), **self.down.attributes("down_")}
        return {**pairs, "num_experts": self.num_experts, "norm": int(Norm.NONE), "epsilon": 0.0}

    def session(self, threads: int = 1, **changes: Any) -> Any:
        rows, weights = np.zeros((1, HIDDEN), np.float32), np.zeros((1, self.num_experts), np.float32)
        attributes = {**self.attributes(), **changes}
        return native_session(
            self.kind.experts, self.inputs(rows, weights), attributes, ("rows", "weights"), threads=threads
        )

    def expected(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        total = np.zeros((*rows.shape[:-1], HIDDEN))
        for expert in range(self.num_experts):
            inner = part(self.up, expert, self.num_experts, "columns").expected(rows).astype(np.float32)
            total += weights[..., expert, None] * part(self.down, expert, self.num_experts, "rows").expected(inner)
        return total + self.down.weights["bias"]


def part(case: ProductCase, index: int, count: int, axis: str) -> ProductCase:
    """Return one of the products that lie side by side, or below each other and then without the bias."""
    rows, columns = case.in_features, case.out_features
    size = (rows if axis == "rows" else columns) // count
    own = slice(index * size, (index + 1) * size)
    one = ProductCase(
        kind=case.kind,
        in_features=size if axis == "rows" else rows,
        out_features=columns if axis == "rows" else size,
        scale=case.scale,
        zero_point=case.zero_point,
        activation=case.activation,
        gate=case.gate,
    )
    one.weights.update({name: cut(name, value, own, axis) for name, value in case.weights.items()})
    return one


def cut(name: str, value: Any, own: slice, axis: str) -> Any:
    """Return a part's share of an input."""
    if axis == "rows":
        return None if name == "bias" else value[own] if name in ("weights", "factors") else value
    return value if name == "factors" else value[..., own]


def draw(count: int, num_experts: int, chosen: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows, and weights of which ``chosen`` a row are not 0."""
    source = np.random.default_rng(seed)
    rows = source.standard_normal((count, HIDDEN)).astype(np.float32)
    weights = source.random((count, num_experts)).astype(np.float32)
    ranks = weights.argsort(-1).argsort(-1)
    return rows, np.where(ranks >= num_experts - chosen, weights, 0).astype(np.float32)


def run(session: Any, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    result: np.ndarray = session.run(None, {"rows": rows, "weights": weights})[0]
    return result


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@each_kind
@pytest.mark.parametrize(
    ("gate", "activation"),
    [*((gate, Activation.GELU) for gate in Gate), (Gate.FIRST, Activation.SWIGLU), (Gate.EVEN, Activation.SWIGLU)],
    ids=lambda it: it.name,
)
@pytest.mark.parametrize("sizes", [(1, 4, 2), (7, 1, 1), (100, 8, 2), (2500, 3, 2), (9, 5, 0)], ids=str)
def test_sums_of_the_experts_that_count(
    kind: ProductOperators, gate: Gate, activation: Activation, sizes: tuple[int, int, int]
) -> None:
    count, num_experts, chosen = sizes
    case = ExpertsCase(kind, num_experts, gate, activation=activation)
    rows, weights = draw(count, num_experts, chosen)
    for threads in (1, 2):
        found = run(case.session(threads), rows, weights)
        assert_near(found, case.expected(rows, weights), TOLERANCES[kind.experts])


def test_static_rounding() -> None:
    case = ExpertsCase(QUANTIZED, 4, scale=0.05)
    rows, weights = draw(50, 4, 2)
    assert_near(run(case.session(), rows, weights), case.expected(rows, weights), 2e-2)


@each_kind
def test_a_row_has_the_same_bits_in_any_batch_and_order(kind: ProductOperators) -> None:
    case = ExpertsCase(kind, 6)
    rows, weights = draw(1300, 6, 2)
    together = run(case.session(), rows, weights)
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(run(case.session(2), rows[order], weights[order]), together[order])
    session = case.session()
    for row in (0, 1, 700, 1299):
        assert np.array_equal(run(session, rows[row : row + 1], weights[row : row + 1])[0], together[row])


@each_kind
def test_experts_of_no_weight_are_not_computed(kind: ProductOperators) -> None:
    case = ExpertsCase(kind, 3)
    bias = case.up.weights["bias"]
    assert bias is not None
    bias[: len(bias) // 3] = np.nan
    rows, weights = draw(20, 3, 3)
    weights[:10, 0] = 0
    found = run(case.session(), rows, weights)
    assert np.isfinite(found[:10]).all()
    assert np.isnan(found[10:]).all()


@each_kind
@pytest.mark.parametrize("norm", [Norm.LAYER, Norm.ROOT_MEAN_SQUARE], ids=lambda it: it.name)
def test_residual_and_norm_follow_and_the_sum_is_an_answer_too(kind: ProductOperators, norm: Norm) -> None:
    case = ExpertsCase(kind, 4)
    rows, weights = draw(33, 4, 2)
    residual, scale = draw(33, 4, 2, seed=9)[0], np.linspace(0.5, 2, HIDDEN, dtype=np.float32)
    inputs = case.inputs(rows, weights, residual=residual, norm_weight=scale, norm_bias=None)
    attributes = {**case.attributes(), "norm": int(norm), "epsilon": 1e-5}
    session = native_session(case.kind.experts, inputs, attributes, ("rows", "weights", "residual"), outputs=2)
    answer, total = session.run(None, {"rows": rows, "weights": weights, "residual": residual})
    assert np.array_equal(total, run(case.session(), rows, weights) + residual)
    assert_near(answer, normalized(total.astype(np.float64), norm, scale, None, 1e-5), 1e-5)


@each_kind
def test_what_does_not_fit_is_refused(kind: ProductOperators) -> None:
    case = ExpertsCase(kind, 4)
    rows, weights = draw(5, 4, 2)
    for wrong in (weights[:4], weights[:, :3]):
        with pytest.raises((Fail, RuntimeException), match="needs a weight of each of the 4 experts"):
            run(case.session(), rows, wrong)
    with pytest.raises((Fail, RuntimeException), match="does not have equal parts"):
        case.session(num_experts=7)
    with pytest.raises((Fail, RuntimeException), match="there must be an expert"):
        case.session(num_experts=0)
    for change in ({"down_activation": int(Activation.RELU)}, {"down_gate": int(Gate.FIRST)}):
        with pytest.raises((Fail, RuntimeException), match="what experts answer is summed as it is"):
            case.session(**change)
