"""Quantized embeddings: the integers of sentence-transformers, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import quantize_embeddings as reference

from poolgraph.errors import InputError
from poolgraph.runtime import quantization
from poolgraph.runtime.quantization import PRECISIONS, calibrate_ranges, quantize_embeddings

SCALAR = ("int8", "uint8")
DTYPES = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}

quickly = settings(max_examples=80, deadline=None, derandomize=True)


def random(num_rows: int, dim: int, *, seed: int = 0, dtype: type = np.float32, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((num_rows, dim)) * scale).astype(dtype)


@contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_identical(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(
    num_rows=st.integers(2, 40),
    dim=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    scale=st.sampled_from([1e-6, 0.05, 1.0, 300.0]),
)
@quickly
def test_integers_are_those_of_sentence_transformers(precision, num_rows, dim, seed, dtype, scale) -> None:
    embeddings = random(num_rows, dim, seed=seed, dtype=dtype, scale=scale)
    embeddings[:, seed % dim] = embeddings[0, 0]  # a dimension without a range
    with silent():
        assert_identical(quantize_embeddings(embeddings, precision), reference(embeddings, precision))
    calibration = random(30, dim, seed=seed + 1, scale=scale)
    ranges = np.vstack((calibration.min(axis=0), calibration.max(axis=0)))
    for options in ({"ranges": ranges}, {"calibration_embeddings": calibration}):
        found = quantize_embeddings(embeddings, precision, **options)
        assert_identical(found, reference(embeddings, precision, **options))
        assert_identical(quantize_embeddings(embeddings[0], precision, **options), found[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_matrices_share_their_ranges_as_in_sentence_transformers(precision) -> None:
    matrices = [random(length, 12, seed=length) for length in (3, 1, 60, 0, 80)]
    calibration = random(40, 12, seed=9)
    for options in ({}, {"calibration_embeddings": calibration}):
        found = quantize_embeddings(matrices, precision, **options)
        for ours, theirs in zip(found, reference(matrices, precision, **options), strict=True):
            assert_identical(ours, theirs)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_empty_embeddings_as_in_sentence_transformers(precision) -> None:
    empty = np.empty((0, 11), np.float32)
    assert_identical(quantize_embeddings(empty, precision), reference(empty, precision))
    assert quantize_embeddings([], precision) == reference([], precision) == []
    (found,) = quantize_embeddings([empty], precision)
    assert_identical(found, reference([empty], precision)[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lists_and_blocks(precision, monkeypatch) -> None:
    """A list of rows is a matrix; a large matrix is quantized block by block with the same result."""
    embeddings = random(120, 24)
    expected = reference(embeddings, precision)
    monkeypatch.setattr(quantization, "_BLOCK_ELEMENTS", 24 * 7)
    assert_identical(quantize_embeddings(embeddings, precision), expected)
    assert_identical(quantize_embeddings(list(embeddings), precision), expected)
    # Python's floats are of 64 bits, so that a value at a boundary may get another code.
    assert_identical(quantize_embeddings(embeddings.tolist(), precision), reference(embeddings.tolist(), precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_embeddings_are_left_as_they_are(precision) -> None:
    embeddings = random(120, 24)
    before = embeddings.copy()
    found = quantize_embeddings(embeddings, precision)
    assert np.array_equal(embeddings, before)
    assert not np.shares_memory(found, embeddings)
    assert found.dtype == DTYPES[precision]


def test_binary_codes_hold_a_bit_a_value() -> None:
    embeddings = random(50, 20)
    bits = np.unpackbits(quantize_embeddings(embeddings, "ubinary"), axis=1)
    assert np.array_equal(bits[:, :20], embeddings > 0)
    assert not bits[:, 20:].any()
    signed = quantize_embeddings(embeddings, "binary").astype(int) + 128
    assert np.array_equal(signed, quantize_embeddings(embeddings, "ubinary"))
    assert quantize_embeddings(np.zeros((1, 8)), "ubinary").tolist() == [[0]]


@pytest.mark.parametrize("precision", SCALAR)
def test_saved_ranges_give_the_same_codes(precision, tmp_path) -> None:
    corpus, query = random(200, 16), random(1, 16, seed=1)
    np.save(tmp_path / "ranges.npy", calibrate_ranges(corpus))
    ranges = np.load(tmp_path / "ranges.npy")
    assert ranges.dtype == np.float32
    assert_identical(
        quantize_embeddings(query, precision, ranges=ranges),
        reference(query, precision, calibration_embeddings=corpus),
    )
    codes = quantize_embeddings(corpus, precision, ranges).astype(int) + (128 if precision == "int8" else 0)
    assert codes.min() == 0
    assert codes.max() == 255


@pytest.mark.parametrize("precision", SCALAR)
def test_few_rows_are_warned_of_at_the_caller(precision) -> None:
    with pytest.warns(UserWarning, match=f"{precision} ranges computed from only 99 embeddings") as caught:
        quantize_embeddings(random(99, 8), precision)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_embeddings(random(100, 8), precision)
        quantize_embeddings([random(60, 8), random(40, 8)], precision)
        quantize_embeddings(random(3, 8), precision, calibration_embeddings=random(2, 8))
        quantize_embeddings(random(3, 8), "binary")


def test_values_outside_of_the_ranges_are_their_ends() -> None:
    ranges = [[0.0, 0.0], [1.0, 1e-30]]
    found = quantize_embeddings([[-5.0, -1.0], [5.0, 3e38], [0.5, 0.0]], "uint8", ranges)
    assert found.tolist() == [[0, 0], [255, 255], [127, 0]]


@pytest.mark.parametrize(
    ("embeddings", "precision", "options", "message"),
    [
        (random(3, 4), "int4", {}, r"Precision 'int4' is not supported; choose one of \['float32', 'int8', 'uint8'"),
        (random(3, 4), None, {}, "Precision None is not supported"),
        (np.zeros((3, 4), np.int8), "binary", {}, "embeddings are int8 already"),
        (np.zeros((3, 4), np.uint8), "int8", {}, "embeddings are uint8 already"),
        (np.zeros((3, 4), bool), "binary", {}, "must be numbers, not bool"),
        (["a", "b"], "binary", {}, "must be numbers"),
        ([[1.0], [1.0, 2.0]], "binary", {}, "embeddings are no array"),
        (np.zeros((2, 3, 4)), "binary", {}, r"got \(2, 3, 4\); pass token embeddings of several texts as a list"),
        (np.float32(1), "binary", {}, r"got \(\)"),
        (np.zeros((2, 0)), "binary", {}, r"got \(2, 0\)"),
        ([[1.0, 2.0], [np.nan, 0.0]], "binary", {}, r"NaN or infinity \(row 1\)"),
        ([[1.0, 2.0], [np.inf, 0.0]], "float32", {}, r"NaN or infinity \(row 1\)"),
        ([[1.0, 1e300]], "float32", {}, "outside of float32"),
        (random(1, 4), "int8", {}, "int8 ranges cannot be computed from one embedding"),
        (random(1, 4)[0], "uint8", {}, "uint8 ranges cannot be computed from one embedding"),
        ([random(1, 4)], "uint8", {}, "uint8 ranges cannot be computed from one embedding"),
        (random(3, 4), "int8", {"ranges": random(4, 2)}, r"ranges must be \(2, dim\)"),
        (random(3, 4), "int8", {"ranges": "a.npy"}, "ranges are no array of numbers"),
        (random(3, 4), "int8", {"ranges": [[0.0] * 5, [1.0] * 5]}, "ranges are of 5 dimensions, the embeddings of 4"),
        (random(3, 4), "int8", {"ranges": [[1.0] * 4, [0.0] * 4]}, r"least value \(row 0\) not above"),
        (random(3, 4), "int8", {"ranges": [[np.nan] * 4, [0.0] * 4]}, "ranges must be finite"),
        (random(3, 4), "int8", {"ranges": [[-3e38] * 4, [3e38] * 4]}, "ranges must be finite"),
        (random(3, 4), "int8", {"ranges": [[-1e300] * 4, [0] * 4]}, "ranges must be finite"),
        (random(3, 4), "int8", {"calibration_embeddings": random(1, 4)}, "at least two embeddings, got 1"),
        (random(3, 4), "int8", {"calibration_embeddings": random(3, 5)}, "ranges are of 5 dimensions"),
        (random(3, 4), "int8", {"calibration_embeddings": [[np.nan, 0], [1, 2]]}, "calibration_embeddings hold NaN"),
        ([random(60, 4), random(60, 5)], "int8", {}, r"differ in their dimensions: \[4, 5\]"),
    ],
)
def test_refused(embeddings, precision, options, message) -> None:
    with pytest.raises(InputError, match=message):
        quantize_embeddings(embeddings, precision, **options)


def test_refusals_of_sentence_transformers_are_refusals_here() -> None:
    for embeddings in (random(1, 4), random(1, 4)[0], np.zeros((2, 4), np.int8)):
        with pytest.raises(Exception, match=r"(?i)embedding"):
            reference(embeddings, "int8")
        with pytest.raises(ValueError, match="embedding"):
            quantize_embeddings(embeddings, "int8")
