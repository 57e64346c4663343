"""CUDA's attention in numpy, against ONNX Runtime's CPU kernels and against attention of one text, written plainly."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from cuda_operators import run_reference
from little_graphs import random, session
from one_node import TOLERANCE, TYPES, compare, evaluate, one_node


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def plain_attention(query, key, value, num_heads, scale=None, bias=None, seen=lambda row, column: True) -> np.ndarray:
    """Attention of one text, (tokens, num_heads * size), in float64, a head and a query at a time."""
    size = query.shape[1] // num_heads
    result = np.zeros(query.shape)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for row in range(len(query)):
            columns = [column for column in range(len(key)) if seen(row, column)]
            scores = key[columns, part].astype(np.float64) @ query[row, part].astype(np.float64)
            scores = scores * (scale or size**-0.5)
            if bias is not None:
                scores = scores + bias[head, row, columns]
            result[row, part] = softmax(scores) @ value[columns, part]
    return result


BATCH, LENGTH, HEADS, SIZE = 3, 7, 4, 8
LENGTHS = np.array([7, 3, 1], np.int32)
ROWS = [random(BATCH, LENGTH, HEADS * SIZE, seed=seed) for seed in range(3)]
REAL = np.arange(LENGTH) < LENGTHS[:, None]


@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("bias_shape", [None, (1, 1, 7, 7), (BATCH, HEADS, 7, 7)])
def test_multi_head_attention(with_lengths: bool, bias_shape) -> None:
    bias = None if bias_shape is None else random(*bias_shape, seed=5)
    lengths = LENGTHS if with_lengths else None
    inputs = [*ROWS, None, lengths, bias]
    while inputs[-1] is None:
        inputs.pop()
    compare("com.microsoft.MultiHeadAttention", *inputs, num_heads=HEADS, scale=0.3, mask_filter_value=-3e38)


def test_multi_head_attention_without_scale_unidirectional_and_of_another_length() -> None:
    compare("com.microsoft.MultiHeadAttention", *ROWS, num_heads=HEADS)
    compare("com.microsoft.MultiHeadAttention", *ROWS, num_heads=HEADS, unidirectional=1)
    keys = [random(BATCH, 5, HEADS * SIZE, seed=seed) for seed in (6, 7)]
    bias = random(1, HEADS, LENGTH, 5, seed=8)
    compare("com.microsoft.MultiHeadAttention", ROWS[0], *keys, None, None, bias, num_heads=HEADS)


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_padding_of_multi_head_attention_is_garbage_and_real_rows_are_right(kind) -> None:
    rows = [it.astype(kind) for it in ROWS]
    found = evaluate("com.microsoft.MultiHeadAttention", *rows, None, LENGTHS, num_heads=HEADS, poison=True)[0]
    assert found.dtype == kind
    found = found.astype(np.float32)
    assert (np.abs(found[~REAL]) == 512).all()
    for text, length in enumerate(LENGTHS):
        expected = plain_attention(*(it[text, :length].astype(np.float32) for it in rows), HEADS)
        np.testing.assert_allclose(found[text, :length], expected, atol=TOLERANCE[TYPES[np.dtype(kind)]])


def test_nan_in_padding_reaches_the_texts_of_multi_head_attention() -> None:
    value = ROWS[2].copy()
    value[~REAL] = np.nan
    found = evaluate("com.microsoft.MultiHeadAttention", *ROWS[:2], value, None, LENGTHS, num_heads=HEADS)[0]
    assert np.isnan(found[1, :3]).all(), "a kernel multiplies what it masks by 0"
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([*ROWS, random(3 * HEADS * SIZE)], "bias"),
        ([*ROWS, None, np.ones((BATCH, LENGTH), np.int32)], "only int32 lengths"),
        ([*ROWS, None, np.array([8, 1, 1], np.int32)], "out of range"),
        ([ROWS[0]], "packed query, key and value"),
    ],
)
def test_slow_uses_of_multi_head_attention_are_refused(inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate("com.microsoft.MultiHeadAttention", *inputs, num_heads=HEADS)


KV_HEADS = 2
GROUPED_SIZE = 16  # GroupQueryAttention rotates heads of multiples of 16 alone
GROUPED = [
    random(BATCH, LENGTH, heads * GROUPED_SIZE, seed=seed) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))
]
TOTAL = np.array(LENGTH, np.int32)
ANGLES = np.arange(16)[:, None] / 3.0 ** np.arange(GROUPED_SIZE // 2)
CACHES = [function(ANGLES).astype(np.float32) for function in (np.cos, np.sin)]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scale": 0.2},
        {"causal": 0},
        {"local_window_size": 3},
        {"local_window_size": 1},
        {"softcap": 0.5},
        {"softcap": 2.0, "local_window_size": 4},
        {"do_rotary": 1},
        {"do_rotary": 1, "rotary_interleaved": 1},
        {"smooth_softmax": 1},
    ],
)
def test_group_query_attention(attributes, kind) -> None:
    """Against the CPU kernel, where it computes padding too or rows are real."""
    caches = [it.astype(kind) for it in CACHES] if "do_rotary" in attributes else []
    inputs = [*(it.astype(kind) for it in GROUPED), None, None, LENGTHS - 1, TOTAL, *caches]
    attributes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, **attributes}
    model, feeds = one_node("com.microsoft.GroupQueryAttention", inputs, 3, **attributes)
    expected, found = session(model).run(None, feeds), list(run_reference(model, feeds).values())
    tolerance = TOLERANCE[TYPES[np.dtype(kind)]]
    np.testing.assert_allclose(found[0][REAL], expected[0][REAL], rtol=tolerance, atol=tolerance)
    for left, right in zip(expected[1:], found[1:], strict=True):
        real = [it.transpose(0, 2, 1, 3)[REAL] for it in (left, right)]
        np.testing.assert_allclose(*real, rtol=tolerance, atol=tolerance)
    for array in (found[0], *(it.transpose(0, 2, 1, 3) for it in found[1:])):
        assert (np.abs(array[~REAL]) == 512).all()


def test_group_query_attention_with_bias_sink_positions_and_packed_input() -> None:
    heads = {"num_heads": HEADS, "kv_num_heads": KV_HEADS}
    full, bias, sink = np.full(BATCH, LENGTH - 1, np.int32), random(1, HEADS, LENGTH, LENGTH, seed=9), random(HEADS)
    name = "com.microsoft.GroupQueryAttention"
    compare(name, *GROUPED, None, None, full, TOTAL, None, None, None, bias, sink, outputs=3, **heads)
    compare(name, np.concatenate(GROUPED, 2), *[None] * 4, full, TOTAL, outputs=3, **heads)
    positions = np.tile(np.arange(LENGTH), (BATCH, 1)) + 4
    compare(name, *GROUPED, None, None, full, TOTAL, *CACHES, positions, outputs=3, do_rotary=1, **heads)


def test_norms_of_query_and_key_within_group_query_attention() -> None:
    """CPU has no such kernel: the same norms before the operator must answer the same."""
    weights = [1 + random(GROUPED_SIZE, seed=seed) / 4 for seed in (11, 12)]
    normed = []
    for rows, weight in zip(GROUPED, weights, strict=False):
        heads = rows.reshape(BATCH, LENGTH, -1, GROUPED_SIZE).astype(np.float64)
        normed.append((heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-5) * weight).reshape(rows.shape))
    normed = [it.astype(np.float32) for it in normed]
    tail = [None, None, LENGTHS - 1, TOTAL, *CACHES]
    attributes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1, "outputs": 3}
    name = "com.microsoft.GroupQueryAttention"
    expected = evaluate(name, *normed, GROUPED[2], *tail, **attributes)
    fused = evaluate(name, *GROUPED, *tail, *[None] * 5, *weights, qk_norm_epsilon=1e-5, **attributes)
    for left, right in zip(expected, fused, strict=True):
        np.testing.assert_allclose(right, left, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("seqlens", "total", "more", "message"),
    [
        (LENGTHS, TOTAL, [], "out of range"),
        ((LENGTHS - 1).astype(np.int64), TOTAL, [], "seqlens_k of int64"),
        (LENGTHS - 1, np.array(6, np.int32), [], "no prompt"),
        (LENGTHS - 1, np.array(7, np.int64), [], "total_sequence_length of int64"),
        (LENGTHS - 1, TOTAL, [*CACHES, np.zeros((BATCH, LENGTH), np.int64)], "do not count up"),
    ],
)
def test_wrong_uses_of_group_query_attention_are_refused(seqlens, total, more, message: str) -> None:
    model, feeds = one_node(
        "com.microsoft.GroupQueryAttention",
        [*GROUPED, None, None, seqlens, total, *more],
        3,
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=int(bool(more)),
    )
    with pytest.raises(ValueError, match=message):
        run_reference(model, feeds)


def test_heads_that_group_query_attention_does_not_run_are_refused() -> None:
    heads = {"num_heads": HEADS, "kv_num_heads": HEADS}
    for size, more, message in ((4, [], "a multiple of 8"), (8, CACHES, "a multiple of 16")):
        rows = [random(BATCH, LENGTH, HEADS * size)] * 3
        with pytest.raises(ValueError, match=message):
            evaluate(
                "com.microsoft.GroupQueryAttention",
                *[*rows, None, None, LENGTHS - 1, TOTAL, *more],
                do_rotary=int(bool(more)),
                **heads,
            )


def token_offset(lengths: np.ndarray, longest: int) -> np.ndarray:
    """Places in a padded batch: those of tokens, then those of padding."""
    places = np.arange(len(lengths) * longest).reshape(len(lengths), longest)
    real = np.arange(longest) < lengths[:, None]
    return np.concatenate([places[real], places[~real]]).reshape(places.shape).astype(np.int32)


BOUNDS = np.array([0, 7, 10, 11, 11], np.int32)
PACKED = [random(13, HEADS * SIZE, seed=seed) for seed in range(3)]
OFFSETS = token_offset(np.diff(BOUNDS), 8)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_packed_attention_is_attention_of_each_text(with_bias: bool, kind) -> None:
    bias = random(4, HEADS, 8, 8, seed=4).astype(kind) if with_bias else None
    rows = [it.astype(kind) for it in PACKED]
    inputs = [*rows, None, OFFSETS, BOUNDS, *([bias] if with_bias else [])]
    found = evaluate("com.microsoft.PackedMultiHeadAttention", *inputs, num_heads=HEADS, scale=0.4)[0]
    assert found.dtype == kind
    for text, (start, end) in enumerate(pairwise(BOUNDS)):
        added = None if bias is None else bias[text, :, : end - start, : end - start]
        expected = plain_attention(*(it[start:end] for it in rows), HEADS, 0.4, added)
        np.testing.assert_allclose(found[start:end], expected, atol=TOLERANCE[TYPES[np.dtype(kind)]])
    assert np.isnan(found[11:]).all(), "rows behind the last text are never written"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([*PACKED, None, OFFSETS, np.array([0, 7, 10, 14, 14], np.int32)], "it rises from 0"),
        ([*PACKED, None, OFFSETS[:3], BOUNDS], "5 bounds, 3 rows"),
        ([*PACKED, None, OFFSETS, np.array([0, 9, 10, 11, 11], np.int32)], "a text of 9 tokens"),
        ([*(it.astype(ml_dtypes.bfloat16) for it in PACKED), None, OFFSETS, BOUNDS], "bfloat16"),
        ([*PACKED, None, OFFSETS.astype(np.int64), BOUNDS], "int32"),
        ([PACKED[0], None, None, None, OFFSETS, BOUNDS], "packed query"),
    ],
)
def test_wrong_uses_of_packed_attention_are_refused(inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate("com.microsoft.PackedMultiHeadAttention", *inputs, num_heads=HEADS)


def test_restore_padding_puts_rows_in_their_places() -> None:
    lengths = np.diff(BOUNDS)
    rows = random(11, 5)
    found = evaluate("com.microsoft.RestorePadding", rows, OFFSETS)[0]
    assert found.shape == (4, 8, 5)
    np.testing.assert_array_equal(found[np.arange(8) < lengths[:, None]], rows)
    assert not found[np.arange(8) >= lengths[:, None]].any()
