"""What joins the scores of the native attention: biases by distance and sinks, of uniform and of packed texts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from native_attention import KINDS, assert_near, attention_attributes, expected_attention, rows_of, run_attention
from native_graphs import needs_native
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from poolgraph.graphs.native import FLOAT_ATTENTION

pytestmark = [needs_native, pytest.mark.usefixtures("each_native_library")]

HEADS, KV_HEADS, SIZE = 4, 2, 24
WIDTHS = (HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE)
LENGTHS = (7, 1, 130, 2, 16, 33, 1, 48)
"""Of packed texts."""

each_kind = pytest.mark.parametrize("kind", KINDS)


def parts_of(texts: int, length: int) -> list[np.ndarray]:
    return [rows_of(texts, length, width, seed=seed) * 2 for seed, width in enumerate(WIDTHS)]


def table_of(reach: int) -> np.ndarray:
    """A bias by distance for texts of up to reach + 1 tokens: of each reach the same numbers in the middle."""
    middle, most = 1000, rows_of(HEADS, 2001, seed=11) * 2
    return np.ascontiguousarray(most[:, middle - reach : middle + reach + 1])


def expand(table: np.ndarray, queries: int, keys: int) -> np.ndarray:
    """The same for each query and key, (1, heads, queries, keys); the queries are the last ones."""
    ahead = np.arange(keys)[None, :] - np.arange(keys - queries, keys)[:, None]
    return table[None, :, ahead + table.shape[1] // 2]


def attend(parts: list[np.ndarray], kind: str = "all", threads: int = 1, **more: np.ndarray) -> np.ndarray:
    attributes = attention_attributes(HEADS, KV_HEADS, SIZE, **KINDS[kind])
    return run_attention(FLOAT_ATTENTION, parts, attributes, threads, **more)


def packed_texts() -> tuple[list[np.ndarray], np.ndarray]:
    bounds = np.cumsum((0, *LENGTHS)).astype(np.int64)
    return parts_of(1, int(bounds[-1])), bounds


@each_kind
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize(("length", "more_reach"), [(1, 0), (2, 0), (13, 4), (47, 0), (130, 0), (131, 700)])
def test_a_bias_by_distance_is_added(kind: str, softcap: float, length: int, more_reach: int) -> None:
    attributes = attention_attributes(HEADS, KV_HEADS, SIZE, softcap=softcap, **KINDS[kind])
    parts, table = parts_of(3, length), table_of(length - 1 + more_reach)
    bias = expand(table, length, length)
    found = run_attention(FLOAT_ATTENTION, parts, attributes, by_distance=table)
    assert_near(found, expected_attention(*parts, attributes, bias), 5e-6)
    np.testing.assert_array_equal(found, run_attention(FLOAT_ATTENTION, parts, attributes, bias=bias))


@pytest.mark.parametrize("size", [8, 20, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (4, 4)])
def test_a_bias_by_distance_and_sinks_of_every_head_size(size: int, heads: int, kv_heads: int) -> None:
    attributes = attention_attributes(heads, kv_heads, size, is_causal=heads % 2)
    parts = [rows_of(2, 37, count * size, seed=seed) for seed, count in enumerate((heads, kv_heads, kv_heads))]
    table, sinks = rows_of(heads, 73, seed=4), rows_of(heads, seed=5) * 3
    found = run_attention(FLOAT_ATTENTION, parts, attributes, by_distance=table, sinks=sinks)
    assert_near(found, expected_attention(*parts, attributes, expand(table, 37, 37), sinks), 5e-6)


@each_kind
@pytest.mark.parametrize("queries", [1, 2, 17])
def test_fewer_queries_than_keys_stand_at_the_end(kind: str, queries: int) -> None:
    parts, table = parts_of(2, 60), table_of(59)
    whole = attend(parts, kind, by_distance=table)
    found = attend([parts[0][:, -queries:], *parts[1:]], kind, by_distance=table)
    np.testing.assert_array_equal(found, whole[:, -queries:])


@each_kind
@pytest.mark.parametrize("height", [-80.0, -2.0, 0.0, 3.0, 80.0])
@pytest.mark.parametrize("length", [1, 2, 13, 47, 130])
def test_sinks_take_a_share(kind: str, height: float, length: int) -> None:
    attributes = attention_attributes(HEADS, KV_HEADS, SIZE, **KINDS[kind])
    parts, sinks = parts_of(3, length), rows_of(HEADS, seed=3) + np.float32(height)
    found = run_attention(FLOAT_ATTENTION, parts, attributes, sinks=sinks)
    assert_near(found, expected_attention(*parts, attributes, sinks=sinks), 5e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_sinks_are_neither_capped_nor_biased(softcap: float) -> None:
    attributes = attention_attributes(HEADS, KV_HEADS, SIZE, softcap=softcap)
    parts, sinks, bias = parts_of(3, 50), np.array([4, 5, 6, 7], np.float32), rows_of(3, HEADS, 50, 50, seed=8)
    found = run_attention(FLOAT_ATTENTION, parts, attributes, bias=bias, sinks=sinks)
    assert_near(found, expected_attention(*parts, attributes, bias, sinks), 5e-6)


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min, -1e4])
def test_the_lowest_sinks_are_none(low: float) -> None:
    parts = parts_of(2, 50)
    np.testing.assert_array_equal(attend(parts, sinks=np.full(HEADS, low, np.float32)), attend(parts))


def test_nan_stays_nan_beside_a_sink() -> None:
    for bits in (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF):
        parts = parts_of(2, 20)
        parts[1][0, 3, 5] = np.array(bits, dtype=np.uint32).view(np.float32)
        found = attend(parts, sinks=np.full(HEADS, 50, np.float32))
        assert np.isnan(found[0, :, : 2 * SIZE]).all()  # the heads that share those keys
        assert np.isfinite(found[1]).all()


MORE = {
    "by distance": {"by_distance": table_of(140)},
    "sinks": {"sinks": rows_of(HEADS, seed=3)},
    "both": {"by_distance": table_of(140), "sinks": rows_of(HEADS, seed=3)},
}
each_more = pytest.mark.parametrize("more", MORE.values(), ids=MORE)


@each_kind
@each_more
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_texts_have_the_bits_of_the_text_alone(kind: str, more: dict[str, np.ndarray], threads: int) -> None:
    parts, bounds = packed_texts()
    together = attend(parts, kind, threads, bounds=bounds, **more)
    alone = [[rows[:, a:b] for rows in parts] for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(together, np.concatenate([attend(it, kind, **more) for it in alone], axis=1))
    attributes = attention_attributes(HEADS, KV_HEADS, SIZE, **KINDS[kind])
    for text, (a, b) in zip(alone, pairwise(bounds), strict=True):
        bias = expand(more["by_distance"], b - a, b - a) if "by_distance" in more else None
        assert_near(together[:, a:b], expected_attention(*text, attributes, bias, more.get("sinks")), 5e-6)


@each_kind
@each_more
def test_the_same_bits_in_any_batch_and_on_any_threads(kind: str, more: dict[str, np.ndarray]) -> None:
    parts = parts_of(5, 141)
    together = attend(parts, kind, **more)
    np.testing.assert_array_equal(attend(parts, kind, 2, **more), together)
    np.testing.assert_array_equal(attend([np.concatenate(parts, axis=-1)], kind, **more), together)
    alone = [attend([rows[i : i + 1] for rows in parts], kind, 1 + i % 2, **more)[0] for i in range(5)]
    np.testing.assert_array_equal(np.stack(alone), together)


def test_a_table_for_longer_texts_changes_no_bit() -> None:
    parts, bounds = packed_texts()
    found = [attend(parts, bounds=bounds, by_distance=table_of(reach)) for reach in (129, 130, 1000)]
    np.testing.assert_array_equal(found[1:], np.stack(found[:1] * 2))


def test_one_query_a_packed_text_has_the_sink_of_its_whole_text() -> None:
    parts, bounds = packed_texts()
    sinks, first = rows_of(HEADS, seed=3), bounds[:-1]
    whole = attend(parts, bounds=bounds, sinks=sinks)
    found = attend([parts[0][:, first], *parts[1:]], bounds=bounds, sinks=sinks)
    np.testing.assert_array_equal(found, whole[:, first])


@pytest.mark.parametrize("shape", [(HEADS, 6), (HEADS, 0), (KV_HEADS, 9), (1, 9), (HEADS * 9,), (1, HEADS, 9), ()])
def test_a_bias_by_distance_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises((Fail, RuntimeException), match="a bias by distance is"):
        attend(parts_of(3, 5), by_distance=np.zeros(shape, np.float32))


def test_a_text_longer_than_a_bias_by_distance_reaches_is_refused() -> None:
    table = table_of(3)
    with pytest.raises((Fail, RuntimeException), match="reaches 3 tokens; a text of 5 needs 4"):
        attend(parts_of(3, 5), by_distance=table)
    with pytest.raises((Fail, RuntimeException), match="reaches 3 tokens; a text of 5 needs 4"):
        attend(parts_of(1, 9), bounds=np.array([0, 4, 9]), by_distance=table)
    with pytest.raises((Fail, RuntimeException), match="reaches 3 tokens; a text of 5 needs 4"):
        attend([rows[:, -1:] if i == 0 else rows for i, rows in enumerate(parts_of(3, 5))], by_distance=table)
    assert np.isfinite(attend(parts_of(1, 8), bounds=np.array([0, 4, 8]), by_distance=table)).all()


def test_a_bias_by_distance_of_one_query_a_packed_text_is_refused() -> None:
    parts = parts_of(1, 8)
    with pytest.raises((Fail, RuntimeException), match="its place is not known"):
        attend([parts[0][:, :2], *parts[1:]], bounds=np.array([0, 4, 8]), by_distance=table_of(7))


def test_two_biases_are_refused() -> None:
    with pytest.raises((Fail, RuntimeException), match="one bias"):
        attend(parts_of(3, 5), bias=rows_of(1, HEADS, 5, 5), by_distance=table_of(4))


@pytest.mark.parametrize("shape", [(KV_HEADS,), (1,), (HEADS, 1), ()])
def test_sinks_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises((Fail, RuntimeException), match=r"sinks are \(heads,\)"):
        attend(parts_of(3, 5), sinks=np.zeros(shape, np.float32))
