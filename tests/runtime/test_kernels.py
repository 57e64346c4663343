"""The native operators against numpy: every shape of edge, every option, the same bits in any batch."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from native_graphs import ProductCase, native_session, needs_native, normalized
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from poolgraph.graphs.native import ATTENTION, QUANTIZED_FEED_FORWARD, QUANTIZED_MATMUL, Activation, Gate, Norm

pytestmark = [needs_native, pytest.mark.usefixtures("each_native_library")]

PLAIN = {"norm": int(Norm.NONE), "epsilon": 0.0}


def rows_of(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product_session(case: ProductCase, rows: np.ndarray, threads: int = 1, **more: Any) -> Any:
    inputs = {"rows": rows, **case.weights, **more}
    return native_session(
        QUANTIZED_MATMUL, inputs, {**case.attributes(), **PLAIN}, ("rows", "residual"), threads=threads
    )


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("count", [1, 5, 6, 7, 32, 33, 48, 49, 100])
@pytest.mark.parametrize("sizes", [(4, 64), (6, 3), (30, 65), (64, 130), (384, 257)], ids=str)
def test_products_of_every_size(count: int, sizes: tuple[int, int]) -> None:
    case = ProductCase(in_features=sizes[0], out_features=sizes[1])
    rows = rows_of(count, sizes[0])
    assert_near(product_session(case, rows).run(None, {"rows": rows})[0], case.expected(rows))


@pytest.mark.parametrize("activation", list(Activation), ids=lambda it: it.name)
@pytest.mark.parametrize("gate", list(Gate), ids=lambda it: it.name)
@pytest.mark.parametrize("scale", [0.0, 0.02])
def test_schemes_activations_and_gates(activation: Activation, gate: Gate, scale: float) -> None:
    for count, factors, bias in [(3, True, True), (50, False, False), (50, True, True)]:
        zero_point = 100 if scale else 0
        options = {"scale": scale, "zero_point": zero_point, "factors": factors, "bias": bias}
        case = ProductCase(in_features=70, out_features=154, activation=activation, gate=gate, **options)
        rows = rows_of(2, count, 70)
        assert_near(product_session(case, rows).run(None, {"rows": rows})[0], case.expected(rows))


def test_activations_keep_their_tails() -> None:
    case = ProductCase(in_features=4, out_features=4, bias=False, activation=Activation.GELU)
    case.weights.update(weights=(np.eye(4) * 127).astype(np.int8), scales=np.full(4, 1 / 127, dtype=np.float32))
    rows = np.repeat(np.linspace(-40, 40, 2001, dtype=np.float32)[:, None], 4, axis=1)
    for activation in Activation:
        one = ProductCase(in_features=4, out_features=4, bias=False, activation=activation)
        one.weights.update(case.weights)
        found = product_session(one, rows).run(None, {"rows": rows})[0]
        np.testing.assert_allclose(found, one.expected(rows), atol=5e-6, rtol=3e-6)


@pytest.mark.parametrize("norm", [Norm.LAYER, Norm.ROOT_MEAN_SQUARE], ids=lambda it: it.name)
@pytest.mark.parametrize(("residual", "bias", "outputs"), list(itertools.product([True, False], [True, False], [1, 2])))
def test_residuals_and_norms(norm: Norm, residual: bool, bias: bool, outputs: int) -> None:
    case = ProductCase(in_features=40, out_features=100)
    weight, shift = rows_of(100, seed=1), rows_of(100, seed=2) if bias else None
    attributes = {**case.attributes(), "norm": int(norm), "epsilon": 1e-5}
    for count in (2, 70):
        rows, added = rows_of(count, 40), rows_of(count, 100, seed=3) if residual else None
        inputs = {"rows": rows, **case.weights, "residual": added, "weight": weight, "shift": shift}
        session = native_session(QUANTIZED_MATMUL, inputs, attributes, ("rows", "residual"), outputs)
        found = session.run(None, {"rows": rows} | ({"residual": added} if residual else {}))
        total = case.expected(rows) + (added if residual else 0)
        assert_near(found[0], normalized(total, norm, weight, shift, 1e-5))
        assert len(found) == outputs
        if outputs == 2:
            assert_near(found[1], total)


@pytest.mark.parametrize("count", [1, 32, 33, 130])
@pytest.mark.parametrize("gate", [Gate.NONE, Gate.SECOND], ids=lambda it: it.name)
def test_a_feed_forward_has_the_bits_of_its_two_products(count: int, gate: Gate) -> None:
    up = ProductCase(in_features=36, out_features=144, activation=Activation.SILU, gate=gate, factors=True, seed=1)
    down = ProductCase(in_features=up.width, out_features=36, scale=0.01, zero_point=30, seed=2)
    rows, weight = rows_of(count, 36), rows_of(36, seed=3)
    inputs = {"rows": rows}
    inputs |= {f"up_{name}": array for name, array in up.weights.items()}
    inputs |= {f"down_{name}": array for name, array in down.weights.items()}
    inputs |= {"residual": rows, "weight": weight, "shift": None}
    attributes = {**up.attributes("up_"), **down.attributes("down_"), "norm": int(Norm.LAYER), "epsilon": 1e-6}
    found = native_session(QUANTIZED_FEED_FORWARD, inputs, attributes, ("rows", "residual"), 2).run(
        None, {"rows": rows, "residual": rows}
    )
    between = product_session(up, rows).run(None, {"rows": rows})[0]
    total = product_session(down, between).run(None, {"rows": between})[0] + rows
    np.testing.assert_array_equal(found[1], total)
    assert_near(found[0], normalized(total.astype(np.float64), Norm.LAYER, weight, None, 1e-6))


def feed_forward_session(threads: int) -> Any:
    """A gated feed-forward layer with residual and norm, of 96 features."""
    up = ProductCase(in_features=96, out_features=400, activation=Activation.GELU, gate=Gate.FIRST, factors=True)
    down = ProductCase(in_features=200, out_features=96, seed=1)
    rows = rows_of(1, 96)
    inputs = {"rows": rows, **{f"up_{name}": array for name, array in up.weights.items()}}
    inputs |= {f"down_{name}": array for name, array in down.weights.items()}
    inputs |= {"residual": rows, "weight": rows_of(96, seed=3), "shift": rows_of(96, seed=4)}
    attributes = {**up.attributes("up_"), **down.attributes("down_"), "norm": int(Norm.LAYER), "epsilon": 1e-6}
    return native_session(QUANTIZED_FEED_FORWARD, inputs, attributes, ("rows", "residual"), threads=threads)


def matmul_session(threads: int) -> Any:
    """A product with activation, residual and norm, of 96 features."""
    case = ProductCase(in_features=96, out_features=96, activation=Activation.SILU)
    inputs = {"rows": rows_of(1, 96), **case.weights, "residual": rows_of(1, 96), "weight": rows_of(96, seed=3)}
    attributes = {**case.attributes(), "norm": int(Norm.ROOT_MEAN_SQUARE), "epsilon": 1e-6}
    return native_session(QUANTIZED_MATMUL, inputs, attributes, ("rows", "residual"), threads=threads)


@pytest.mark.parametrize("make", [feed_forward_session, matmul_session])
def test_bits_do_not_depend_on_the_batch_or_the_threads(make: Any) -> None:
    rows, one, two = rows_of(131, 96), make(1), make(2)

    def run(session: Any, part: np.ndarray) -> np.ndarray:
        return session.run(None, {"rows": part, "residual": part})[0]

    together = run(one, rows)
    np.testing.assert_array_equal(run(two, rows), together)
    for first, last in [(0, 1), (5, 37), (100, 131)]:
        for session in (one, two):
            np.testing.assert_array_equal(run(session, rows[first:last]), together[first:last])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run(two, rows), range(24)):
            np.testing.assert_array_equal(found, together)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [0.0, 0.02])
def test_what_is_not_finite_stays_visible_in_its_row_alone(broken: float, scale: float) -> None:
    case = ProductCase(in_features=20, out_features=20, scale=scale, activation=Activation.GELU)
    rows = rows_of(9, 20)
    rows[4, 17] = broken
    found = product_session(case, rows).run(None, {"rows": rows})[0]
    assert np.isnan(found[4]).all()
    assert np.isfinite(np.delete(found, 4, axis=0)).all()


def test_rows_of_zeros_and_of_huge_numbers() -> None:
    case = ProductCase(in_features=20, out_features=20)
    rows = np.stack([np.zeros(20), np.full(20, 1e30), np.linspace(-3e35, 3e35, 20)]).astype(np.float32)
    found = product_session(case, rows).run(None, {"rows": rows})[0]
    np.testing.assert_array_equal(found[0], case.weights["bias"])
    np.testing.assert_allclose(found[1:], case.expected(rows)[1:], rtol=1e-5)
    far = ProductCase(in_features=20, out_features=20, scale=0.01, zero_point=3)
    np.testing.assert_allclose(product_session(far, rows).run(None, {"rows": rows})[0], far.expected(rows), rtol=1e-5)


def test_no_rows_give_no_rows() -> None:
    case = ProductCase()
    empty = np.zeros((2, 0, 64), dtype=np.float32)
    assert product_session(case, empty).run(None, {"rows": empty})[0].shape == (2, 0, 64)


def test_rows_and_residuals_of_another_size_are_refused() -> None:
    case = ProductCase()
    rows = rows_of(3, 63)
    with pytest.raises((Fail, RuntimeException), match="rows have 63 features, the weights 64"):
        product_session(case, rows).run(None, {"rows": rows})
    rows, residual = rows_of(3, 64), rows_of(2, 64)
    with pytest.raises((Fail, RuntimeException), match="residual's shape"):
        product_session(case, rows, residual=residual).run(None, {"rows": rows, "residual": residual})


def attention_attributes(heads: int, kv_heads: int, size: int, **more: Any) -> dict[str, Any]:
    defaults = {"scale": size**-0.5, "is_causal": 0, "left_window": -1, "right_window": -1}
    return {"num_heads": heads, "kv_num_heads": kv_heads, "head_size": size, **defaults, **more}


def expected_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Attention in float64."""
    heads, kv_heads, size = (attributes[name] for name in ("num_heads", "kv_num_heads", "head_size"))
    batch, length, keys = *query.shape[:2], key.shape[1]
    split = [
        rows.astype(np.float64).reshape(batch, -1, count, size).transpose(0, 2, 1, 3).repeat(heads // count, axis=1)
        for rows, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    ]
    scores = split[0] @ split[1].transpose(0, 1, 3, 2) * attributes["scale"]
    ahead = np.arange(keys)[None, :] - (np.arange(length) + keys - length)[:, None]
    left, right = attributes["left_window"], attributes["right_window"]
    hidden = (ahead > 0 if attributes["is_causal"] else ahead > keys) | (ahead < -left if left >= 0 else ahead < -keys)
    hidden |= ahead > right if right >= 0 else ahead > keys
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    rows = weights @ split[2] / weights.sum(-1, keepdims=True)
    return rows.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def run_attention(parts: list[np.ndarray], attributes: dict[str, Any], threads: int = 1) -> np.ndarray:
    inputs = dict(zip(("query", "key", "value"), parts, strict=False))
    return native_session(ATTENTION, inputs, attributes, tuple(inputs), threads=threads).run(None, inputs)[0]


KINDS = {
    "all": {},
    "causal": {"is_causal": 1},
    "window": {"left_window": 5, "right_window": 5},
    "causal window": {"is_causal": 1, "left_window": 20},
    "left": {"left_window": 0},
}
EXACT = 1e-3
"""Of the largest answer: what rounding to integers may change."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 13, 16, 17, 47, 130])
def test_attention_of_every_length(kind: str, length: int) -> None:
    attributes = attention_attributes(3, 3, 16, **KINDS[kind])
    parts = [rows_of(2, length, 48, seed=seed) * 2 for seed in range(3)]
    assert_near(run_attention(parts, attributes), expected_attention(*parts, attributes), EXACT)


@pytest.mark.parametrize("size", [2, 8, 20, 32, 48, 64, 72, 80, 96, 128, 256])
def test_attention_of_every_head_size(size: int) -> None:
    for heads, kv_heads in ((1, 1), (4, 2), (3, 1)):
        attributes = attention_attributes(heads, kv_heads, size, is_causal=heads % 2)
        parts = [rows_of(2, 37, count * size, seed=seed) for seed, count in enumerate((heads, kv_heads, kv_heads))]
        assert_near(run_attention(parts, attributes), expected_attention(*parts, attributes), EXACT)


@pytest.mark.parametrize("outlier", ["a key", "a query", "a feature of the values", "one key is nearly all", "zeros"])
def test_attention_of_numbers_of_unlike_size(outlier: str) -> None:
    """Scales are of small parts, so that what is large takes no digits from what is small."""
    query, key, value = parts = [rows_of(1, 700, 32, seed=seed) for seed in range(3)]
    if outlier == "a key":
        key[0, 3] *= 30
    elif outlier == "a query":
        query[0, 5] *= 30
    elif outlier == "a feature of the values":
        value[..., 7] *= 300
    elif outlier == "zeros":
        query[0, 2], key[0, 9], value[..., 4] = 0, 0, 0
    else:  # 699 keys share a tenth of the weight
        key[0, 0] = query[0].mean(0) * 60
        query[:] = query[0].mean(0) + 0.05 * query
        value[0, 0] = 0
    attributes = attention_attributes(2, 2, 16)
    found, expected = run_attention(parts, attributes), expected_attention(*parts, attributes)
    sizes = np.maximum(np.abs(value).max(1, keepdims=True), 1e-6)  # of each feature
    assert np.abs((found - expected) / sizes).max() <= 1e-3


def test_attention_of_rows_side_by_side_has_the_same_bits() -> None:
    attributes = attention_attributes(4, 2, 24)
    parts = [rows_of(3, 30, width, seed=width) for width in (96, 48, 49)]
    parts[2] = parts[2][..., :48].copy()
    np.testing.assert_array_equal(
        run_attention([np.concatenate(parts, axis=-1)], attributes), run_attention(parts, attributes)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_attention_has_the_same_bits_in_any_batch_and_on_any_threads(kind: str) -> None:
    attributes = attention_attributes(4, 2, 32, **KINDS[kind])
    parts = [rows_of(5, 150, width, seed=seed) for seed, width in enumerate((128, 64, 64))]
    together = run_attention(parts, attributes)
    np.testing.assert_array_equal(run_attention(parts, attributes, threads=2), together)
    alone = [run_attention([rows[i : i + 1] for rows in parts], attributes, threads=1 + i % 2)[0] for i in range(5)]
    np.testing.assert_array_equal(np.stack(alone), together)


def test_attention_of_fewer_queries_than_keys_is_that_of_the_last_ones() -> None:
    for kind in KINDS.values():
        attributes = attention_attributes(2, 2, 16, **kind)
        parts = [rows_of(2, 40, 32, seed=seed) for seed in range(3)]
        whole = run_attention(parts, attributes)
        np.testing.assert_array_equal(run_attention([parts[0][:, -1:], *parts[1:]], attributes), whole[:, -1:])


def test_attention_keeps_nan_visible_in_its_text_alone() -> None:
    attributes = attention_attributes(1, 1, 16)
    parts = [rows_of(2, 20, 16, seed=seed) for seed in range(3)]
    parts[1][0, 3, 5] = np.nan
    found = run_attention(parts, attributes)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize(
    ("shapes", "heads", "message"),
    [
        ([(1, 4, 40)], (1, 1), "do not fit the heads"),
        ([(1, 4, 16), (1, 4, 16)], (1, 1), "one input or three"),
        ([(4, 4, 16), (1, 4, 16), (1, 4, 16)], (1, 1), "attention takes"),
        ([(1, 6, 16), (1, 4, 16), (1, 4, 16)], (1, 1), "more queries than keys"),
        ([(1, 4, 48), (1, 4, 32), (1, 4, 32)], (3, 2), "multiple"),
        ([(1, 4, 48), (1, 4, 32), (1, 4, 32)], (3, 0), "multiple"),
    ],
)
def test_attention_refuses_what_does_not_fit(
    shapes: list[tuple[int, ...]], heads: tuple[int, int], message: str
) -> None:
    with pytest.raises((Fail, RuntimeException), match=message):
        run_attention([rows_of(*shape) for shape in shapes], attention_attributes(*heads, 16))


def test_attention_refuses_larger_heads_than_it_has_room_for() -> None:
    with pytest.raises((Fail, RuntimeException), match="more features than 512"):
        run_attention([rows_of(1, 3, 3 * 513)], attention_attributes(1, 1, 513))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_attention_refuses_scales_that_turn_the_order_of_scores(scale: float) -> None:
    with pytest.raises((Fail, RuntimeException), match="scale above 0"):
        run_attention([rows_of(1, 3, 48)], attention_attributes(1, 1, 16, scale=scale))


@pytest.mark.parametrize("keys", [40, 300])
def test_weights_of_every_size_add_up(keys: int) -> None:
    """Scores fall evenly from 0 to -18 in units of log2, past the smallest weight."""
    falling = np.linspace(0, -18 / np.log2(np.e), keys, dtype=np.float32)
    key = np.stack([falling, np.zeros_like(falling)], axis=-1)[None]
    query = np.stack([np.linspace(0.05, 1, keys), np.zeros(keys)], axis=-1).astype(np.float32)[None]
    parts = [query, key, rows_of(1, keys, 2)]
    attributes = attention_attributes(1, 1, 2, scale=1.0)
    assert_near(run_attention(parts, attributes), expected_attention(*parts, attributes), 3e-4)


@pytest.mark.parametrize("name", ["scales", "bias", "factors", "weight", "shift"])
def test_constants_of_another_size_are_refused(name: str) -> None:
    case = ProductCase(factors=True)
    inputs = {"rows": rows_of(3, 64), **case.weights, "residual": None, "weight": rows_of(64), "shift": rows_of(64)}
    inputs[name] = rows_of(1)
    attributes = {**case.attributes(), "norm": int(Norm.LAYER), "epsilon": 1e-6}
    with pytest.raises((Fail, RuntimeException), match="must have 64 numbers"):
        native_session(QUANTIZED_MATMUL, inputs, attributes, ("rows",))


def test_a_bias_that_is_fed_and_a_sum_without_a_norm_are_refused() -> None:
    case, rows = ProductCase(), rows_of(3, 64)
    with pytest.raises((Fail, RuntimeException), match="must be constant"):
        native_session(
            QUANTIZED_MATMUL, {"rows": rows, **case.weights}, {**case.attributes(), **PLAIN}, ("rows", "bias")
        )
    session = native_session(
        QUANTIZED_MATMUL, {"rows": rows, **case.weights}, {**case.attributes(), **PLAIN}, ("rows",), 2
    )
    with pytest.raises((Fail, RuntimeException), match="needs a norm"):
        session.run(None, {"rows": rows})
