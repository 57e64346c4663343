"""The native operators of attention against numpy: every length, head size and window, the same bits in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_attention import (
    KINDS,
    assert_near,
    attention_attributes,
    expected_attention,
    rounding_of,
    rows_of,
    run_attention,
)
from native_graphs import needs_native
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from poolgraph.graphs.native import ATTENTION, FLOAT_ATTENTION

pytestmark = [needs_native, pytest.mark.usefixtures("each_product_library")]

each_operator = pytest.mark.parametrize("operator", [ATTENTION, FLOAT_ATTENTION])


def assert_expected(operator: str, parts: list[np.ndarray], attributes: dict[str, Any]) -> None:
    expected = expected_attention(*parts, attributes)
    assert_near(run_attention(operator, parts, attributes), expected, rounding_of(operator))


@each_operator
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 13, 16, 17, 47, 130])
def test_attention_of_every_length(operator: str, kind: str, length: int) -> None:
    attributes = attention_attributes(3, 3, 16, **KINDS[kind])
    parts = [rows_of(2, length, 48, seed=seed) * 2 for seed in range(3)]
    assert_expected(operator, parts, attributes)


@each_operator
@pytest.mark.parametrize("size", [2, 8, 20, 32, 48, 64, 72, 80, 96, 128, 256])
def test_attention_of_every_head_size(operator: str, size: int) -> None:
    for heads, kv_heads in ((1, 1), (4, 2), (3, 1)):
        attributes = attention_attributes(heads, kv_heads, size, is_causal=heads % 2)
        parts = [rows_of(2, 37, count * size, seed=seed) for seed, count in enumerate((heads, kv_heads, kv_heads))]
        assert_expected(operator, parts, attributes)


@each_operator
@pytest.mark.parametrize("outlier", ["a key", "a query", "a feature of the values", "one key is nearly all", "zeros"])
def test_attention_of_numbers_of_unlike_size(operator: str, outlier: str) -> None:
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
    found, expected = run_attention(operator, parts, attributes), expected_attention(*parts, attributes)
    sizes = np.maximum(np.abs(value).max(1, keepdims=True), 1e-6)  # of each feature
    rounded_scores = rounding_of(operator) > 1e-3  # and those of numbers 30 times as large are
    assert np.abs((found - expected) / sizes).max() <= (3e-2 if rounded_scores else 1e-3)


@each_operator
def test_attention_of_rows_side_by_side_has_the_same_bits(operator: str) -> None:
    attributes = attention_attributes(4, 2, 24)
    parts = [rows_of(3, 30, width, seed=width) for width in (96, 48, 49)]
    parts[2] = parts[2][..., :48].copy()
    np.testing.assert_array_equal(
        run_attention(operator, [np.concatenate(parts, axis=-1)], attributes),
        run_attention(operator, parts, attributes),
    )


@each_operator
@pytest.mark.parametrize("kind", KINDS)
def test_attention_has_the_same_bits_in_any_batch_and_on_any_threads(operator: str, kind: str) -> None:
    attributes = attention_attributes(4, 2, 32, **KINDS[kind])
    parts = [rows_of(5, 150, width, seed=seed) for seed, width in enumerate((128, 64, 64))]
    together = run_attention(operator, parts, attributes)
    np.testing.assert_array_equal(run_attention(operator, parts, attributes, threads=2), together)
    alone = [
        run_attention(operator, [rows[i : i + 1] for rows in parts], attributes, threads=1 + i % 2)[0] for i in range(5)
    ]
    np.testing.assert_array_equal(np.stack(alone), together)


@each_operator
def test_attention_of_fewer_queries_than_keys_is_that_of_the_last_ones(operator: str) -> None:
    for kind in KINDS.values():
        attributes = attention_attributes(2, 2, 16, **kind)
        parts = [rows_of(2, 40, 32, seed=seed) for seed in range(3)]
        whole = run_attention(operator, parts, attributes)
        np.testing.assert_array_equal(
            run_attention(operator, [parts[0][:, -1:], *parts[1:]], attributes), whole[:, -1:]
        )


@each_operator
def test_attention_keeps_nan_visible_in_its_text_alone(operator: str) -> None:
    attributes = attention_attributes(1, 1, 16)
    parts = [rows_of(2, 20, 16, seed=seed) for seed in range(3)]
    for bits in (0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF):
        parts[1][0, 3, 5] = np.array(bits, dtype=np.uint32).view(np.float32)
        found = run_attention(operator, parts, attributes)
        assert np.isnan(found[0]).all()
        assert np.isfinite(found[1]).all()


@each_operator
@pytest.mark.parametrize(
    ("shapes", "heads", "message"),
    [
        ([(1, 4, 40)], (1, 1), "do not fit the heads"),
        ([(1, 4, 16), (1, 4, 16)], (1, 1), "one input or three"),
        ([(4, 4, 16), (1, 4, 16), (1, 4, 16)], (1, 1), "attention takes"),
        ([(1, 6, 16), (1, 4, 16), (1, 4, 16)], (1, 1), "more queries than keys"),
        ([(1, 4, 48), (1, 4, 32), (1, 4, 32)], (3, 2), "multiple"),
        ([(1, 4, 48), (1, 4, 32), (1, 4, 32)], (3, 0), "multiple"),
        ([(1, 4, 48), (1, 4, 32), (1, 4, 32)], (-3, 1), "multiple"),
        ([(1, 4, 48), (1, 4, 32), (1, 4, 32)], (2**32 + 1, 1), "do not fit the heads"),
    ],
)
def test_attention_refuses_what_does_not_fit(
    operator: str, shapes: list[tuple[int, ...]], heads: tuple[int, int], message: str
) -> None:
    with pytest.raises((Fail, RuntimeException), match=message):
        run_attention(operator, [rows_of(*shape) for shape in shapes], attention_attributes(*heads, 16))


@each_operator
def test_attention_refuses_larger_heads_than_it_has_room_for(operator: str) -> None:
    with pytest.raises((Fail, RuntimeException), match="more features than 512"):
        run_attention(operator, [rows_of(1, 3, 3 * 513)], attention_attributes(1, 1, 513))


@each_operator
@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_attention_refuses_scales_that_turn_the_order_of_scores(operator: str, scale: float) -> None:
    with pytest.raises((Fail, RuntimeException), match="scale above 0"):
        run_attention(operator, [rows_of(1, 3, 48)], attention_attributes(1, 1, 16, scale=scale))


@each_operator
@pytest.mark.parametrize("keys", [40, 300])
def test_weights_of_every_size_add_up(operator: str, keys: int) -> None:
    """Scores fall evenly from 0 to -18 in units of log2, past the smallest weight."""
    falling = np.linspace(0, -18 / np.log2(np.e), keys, dtype=np.float32)
    key = np.stack([falling, np.zeros_like(falling)], axis=-1)[None]
    query = np.stack([np.linspace(0.05, 1, keys), np.zeros(keys)], axis=-1).astype(np.float32)[None]
    parts = [query, key, rows_of(1, keys, 2)]
    attributes = attention_attributes(1, 1, 2, scale=1.0)
    expected = expected_attention(*parts, attributes)
    assert_near(run_attention(operator, parts, attributes), expected, max(rounding_of(operator), 3e-4))


@each_operator
def test_the_largest_score_is_that_of_keys_seen(operator: str) -> None:
    """The second query sees two keys, whose scores are far below those that the last one sees."""
    key = np.full((1, 64, 2), 103.0, np.float32)
    key[0, :, 1] = 0
    key[0, :2, 0] = -99, -100
    query = np.zeros_like(key)
    query[..., 0] = 1
    parts = [query, key, rows_of(1, 64, 2)]
    attributes = attention_attributes(1, 1, 2, scale=1.0, is_causal=1)
    expected = expected_attention(*parts, attributes)
    assert_near(run_attention(operator, parts, attributes)[:, :2], expected[:, :2], max(rounding_of(operator), 5e-3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softcap", [0.0, 0.5, 50.0])
@pytest.mark.parametrize(("length", "texts"), [(1, 1), (13, 1), (47, 3), (130, 3), (130, 1)])
def test_scores_are_capped_and_a_bias_is_added(kind: str, softcap: float, length: int, texts: int) -> None:
    attributes = attention_attributes(4, 2, 24, softcap=softcap, **KINDS[kind])
    parts = [rows_of(3, length, width, seed=seed) * 3 for seed, width in enumerate((96, 48, 48))]
    bias = rows_of(texts, 4, length, length, seed=9) * 2
    found = run_attention(FLOAT_ATTENTION, parts, attributes, bias=bias)
    assert_near(found, expected_attention(*parts, attributes, bias), 5e-6)
    without = run_attention(FLOAT_ATTENTION, parts, attributes)
    assert_near(without, expected_attention(*parts, attributes), 5e-6)
    together = run_attention(FLOAT_ATTENTION, [np.concatenate(parts, axis=-1)], attributes, threads=2, bias=bias)
    np.testing.assert_array_equal(together, found)
    alone = [rows[1:2] for rows in parts]
    of_text = bias[1 % texts][None]
    np.testing.assert_array_equal(run_attention(FLOAT_ATTENTION, alone, attributes, bias=of_text)[0], found[1])


def test_capped_scores_of_every_size() -> None:
    attributes = attention_attributes(1, 1, 2, scale=1.0, softcap=30.0)
    key = np.linspace(-1e4, 1e4, 600, dtype=np.float32)
    parts = [np.ones((1, 3, 2), np.float32), np.stack([key, key * 0], -1)[None], rows_of(1, 600, 2)]
    assert_near(run_attention(FLOAT_ATTENTION, parts, attributes), expected_attention(*parts, attributes), 5e-6)
    for bits in (0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF):
        parts[1][0, 5] = np.array(bits, dtype=np.uint32).view(np.float32)
        assert np.isnan(run_attention(FLOAT_ATTENTION, parts, attributes)).all()


@pytest.mark.parametrize("softcap", [1e-6, 1e-2, 1e3, 1e6])
def test_a_cap_of_any_size_takes_no_digits_from_small_scores(softcap: float) -> None:
    attributes = attention_attributes(2, 2, 16, softcap=softcap)
    parts = [rows_of(2, 50, 32, seed=seed) for seed in range(3)]
    assert_near(run_attention(FLOAT_ATTENTION, parts, attributes), expected_attention(*parts, attributes), 1e-6)


@pytest.mark.parametrize("softcap", [-1.0, 1e-7, 1e7, np.inf, np.nan])
def test_caps_that_are_none_are_refused(softcap: float) -> None:
    with pytest.raises((Fail, RuntimeException), match="softcap is 0 for none"):
        run_attention(FLOAT_ATTENTION, [rows_of(1, 3, 48)], attention_attributes(1, 1, 16, softcap=softcap))


@each_operator
@pytest.mark.parametrize("window", [2**31 - 1, 2**31 - 20, 2**32, 2**40])
def test_windows_beyond_any_text_are_none(operator: str, window: int) -> None:
    parts = [rows_of(2, 50, 32, seed=seed) for seed in range(3)]
    whole = run_attention(operator, parts, attention_attributes(2, 2, 16))
    for side in ("left_window", "right_window"):
        attributes = attention_attributes(2, 2, 16, **{side: window})
        np.testing.assert_array_equal(run_attention(operator, parts, attributes), whole)


def test_a_bias_hides_no_infinite_score() -> None:
    attributes = attention_attributes(1, 1, 16)
    for place, part in ((3, 1), (0, 0)):
        parts = [rows_of(1, 8, 16, seed=seed) for seed in range(3)]
        parts[part][0, place, 5] = np.inf
        without = run_attention(FLOAT_ATTENTION, parts, attributes)
        assert np.isnan(without).any()
        bias = np.zeros((1, 1, 8, 8), dtype=np.float32)
        np.testing.assert_array_equal(run_attention(FLOAT_ATTENTION, parts, attributes, bias=bias), without)


@pytest.mark.parametrize("low", [np.finfo(np.float32).min, -2.4e38, -1e30])
def test_the_lowest_numbers_of_a_bias_hide_keys_and_leave_no_row_without_an_answer(low: float) -> None:
    attributes = attention_attributes(1, 1, 16)
    parts = [rows_of(1, 20, 16, seed=seed) for seed in range(3)]
    bias = np.zeros((1, 1, 20, 20), dtype=np.float32)
    bias[..., 3], bias[..., 7, :] = low, low
    found = run_attention(FLOAT_ATTENTION, parts, attributes, bias=bias)[0]
    np.testing.assert_allclose(found[7], parts[2][0].mean(0), atol=1e-6)
    parts[1][0, 3] = parts[2][0, 3] = 0.5
    others = [i for i in range(20) if i != 7]
    unseen = run_attention(FLOAT_ATTENTION, parts, attributes, bias=bias)[0]
    np.testing.assert_array_equal(unseen[others], found[others])


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (1, 1, 4, 4), (1, 2, 4, 5), (1, 2, 3, 4), (2, 4, 4)])
def test_a_bias_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    parts = [rows_of(3, 4, 32, seed=seed) for seed in range(3)]
    with pytest.raises((Fail, RuntimeException), match="a bias is"):
        run_attention(FLOAT_ATTENTION, parts, attention_attributes(2, 2, 16), bias=rows_of(*shape))
