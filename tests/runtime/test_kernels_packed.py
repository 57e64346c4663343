"""The native operators over packed texts: the bits of each text alone, whatever is packed beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from native_graphs import native_session, needs_native
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from poolgraph.graphs.native import ATTENTION, FLOAT_ATTENTION, TEXT_SUM

pytestmark = [needs_native, pytest.mark.usefixtures("each_product_library")]

LENGTHS = (7, 1, 130, 2, 16, 33, 1, 48)
KINDS: dict[str, dict[str, int]] = {
    "all": {},
    "causal": {"is_causal": 1},
    "window": {"left_window": 5, "right_window": 5},
}
Attend = Callable[..., np.ndarray]
WIDTHS = (96, 48, 48)  # of query, key and value: heads of 24, shared by two


def rows_of(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bounds_of(lengths: tuple[int, ...]) -> np.ndarray:
    return np.cumsum((0, *lengths)).astype(np.int64)


@pytest.fixture(params=[ATTENTION, FLOAT_ATTENTION])
def attention(request: pytest.FixtureRequest) -> Attend:
    def attend(parts: list[np.ndarray], bounds: np.ndarray | None, threads: int = 1, **kind: int) -> np.ndarray:
        defaults: dict[str, Any] = {"scale": 0.2, "is_causal": 0, "left_window": -1, "right_window": -1}
        attributes = {"num_heads": 4, "kv_num_heads": 2, "head_size": 24, **defaults, **kind}
        if request.param == FLOAT_ATTENTION:
            attributes |= {"softcap": kind.get("softcap", 0.0)}
        names = ("query", "key", "value")
        inputs: dict[str, np.ndarray | None] = dict.fromkeys(names) | dict(zip(names, parts, strict=False))
        feeds = {name: rows for name, rows in {**inputs, "bounds": bounds}.items() if rows is not None}
        session = native_session(request.param, {**inputs, "bounds": bounds}, attributes, tuple(feeds), threads=threads)
        return session.run(None, feeds)[0]

    return attend


def packed_parts(lengths: tuple[int, ...]) -> list[np.ndarray]:
    return [rows_of(1, sum(lengths), width, seed=seed) for seed, width in enumerate(WIDTHS)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_each_packed_text_has_the_bits_of_the_text_alone(attention: Attend, kind: str, threads: int) -> None:
    parts, bounds = packed_parts(LENGTHS), bounds_of(LENGTHS)
    together = attention(parts, bounds, threads, **KINDS[kind])
    assert together.shape == (1, sum(LENGTHS), 96)
    alone = [attention([rows[:, a:b] for rows in parts], None, **KINDS[kind]) for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))


def test_a_bias_of_packed_texts_is_refused() -> None:
    parts, bounds = packed_parts((4, 4)), bounds_of((4, 4))
    inputs = dict(zip(("query", "key", "value"), parts, strict=True)) | {"bounds": bounds, "bias": rows_of(1, 4, 8, 8)}
    attributes = {"num_heads": 4, "kv_num_heads": 2, "head_size": 24, "scale": 0.2, "softcap": 0.0, "is_causal": 0}
    attributes |= {"left_window": -1, "right_window": -1}
    with pytest.raises((Fail, RuntimeException), match="not packed"):
        native_session(FLOAT_ATTENTION, inputs, attributes, tuple(inputs)).run(None, inputs)


def test_rows_side_by_side_have_the_same_bits(attention: Attend) -> None:
    parts, bounds = packed_parts(LENGTHS), bounds_of(LENGTHS)
    np.testing.assert_array_equal(attention([np.concatenate(parts, axis=-1)], bounds), attention(parts, bounds))


@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1, 1), (64,)], ids=str)
def test_a_query_a_text_sees_its_whole_text(attention: Attend, lengths: tuple[int, ...]) -> None:
    parts, bounds = packed_parts(lengths), bounds_of(lengths)
    whole = attention(parts, bounds)
    picked = bounds[:-1]
    found = attention([parts[0][:, picked], *parts[1:]], bounds)
    np.testing.assert_array_equal(found, whole[:, picked])


def test_nan_stays_in_its_text(attention: Attend) -> None:
    parts, bounds = packed_parts(LENGTHS), bounds_of(LENGTHS)
    parts[1][0, 8 + 3, 5] = np.nan  # in the third text, in the first head of keys
    found = attention(parts, bounds)[0]
    assert np.isnan(found[8:138]).any()
    assert np.isfinite(found[:8]).all()
    assert np.isfinite(found[138:]).all()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 3], "end at the number of tokens"),
        ([0, 9], "rise from 0"),
        ([1, 8], "rise from 0"),
        ([0, 5, 3, 8], "rise from 0"),
        ([], "one row with bounds"),
    ],
    ids=str,
)
def test_bounds_that_do_not_fit_are_refused(attention: Attend, bounds: list[int], message: str) -> None:
    with pytest.raises((Fail, RuntimeException), match=message):
        attention(packed_parts((8,)), np.array(bounds, dtype=np.int64))


def test_a_query_of_no_text_is_refused(attention: Attend) -> None:
    """Of as many texts as tokens, some empty, nobody can say whose the queries are."""
    with pytest.raises((Fail, RuntimeException), match="rise from 0"):
        attention(packed_parts((4,)), np.array([0, 2, 2, 3, 4]))


@pytest.mark.parametrize(("queries", "kind"), [(3, "all"), (2, "causal"), (2, "window")])
def test_other_numbers_of_queries_and_windows_over_one_are_refused(attention: Attend, queries: int, kind: str) -> None:
    parts = packed_parts((4, 4))
    with pytest.raises((Fail, RuntimeException), match="packed queries are"):
        attention([parts[0][:, :queries], *parts[1:]], bounds_of((4, 4)), **KINDS[kind])


def test_packed_texts_in_several_rows_are_refused(attention: Attend) -> None:
    with pytest.raises((Fail, RuntimeException), match="one row with bounds"):
        attention([rows_of(2, 4, width) for width in WIDTHS], bounds_of((4, 4)))


def text_sum(weights: np.ndarray, rows: np.ndarray, threads: int = 1) -> np.ndarray:
    inputs = {"weights": weights, "rows": rows}
    return native_session(TEXT_SUM, inputs, {}, tuple(inputs), threads=threads).run(None, inputs)[0]


def members(lengths: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.eye(len(lengths), dtype=np.float32), lengths, axis=1)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 384])
def test_sums_of_every_size(size: int) -> None:
    rows, weights = rows_of(sum(LENGTHS), size), members(LENGTHS) * rows_of(1, sum(LENGTHS), seed=3)
    expected = weights.astype(np.float64) @ rows.astype(np.float64)
    np.testing.assert_allclose(text_sum(weights, rows), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_sum_has_the_bits_of_the_text_alone() -> None:
    rows, bounds = rows_of(sum(LENGTHS), 100), bounds_of(LENGTHS)
    together = text_sum(members(LENGTHS), rows, threads=2)
    alone = [text_sum(np.ones((1, b - a), np.float32), rows[a:b])[0] for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_rows_without_weight_do_not_count_be_they_nan() -> None:
    rows = rows_of(4, 8)
    rows[1] = np.nan
    found = text_sum(np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32), rows)
    np.testing.assert_allclose(found[0], rows[0] + 2 * rows[3], rtol=1e-6)
    assert np.isnan(found[1]).all()
    assert not found[2].any()


def test_sums_of_other_sizes_are_refused() -> None:
    with pytest.raises((Fail, RuntimeException), match="a sum takes"):
        text_sum(np.ones((2, 5), np.float32), rows_of(4, 8))
