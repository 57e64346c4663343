"""Similarity functions against sentence-transformers', in bounded memory, and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import SimilarityFunction

from poolgraph.errors import InputError
from poolgraph.runtime import similarity
from poolgraph.runtime.similarity import (
    LATE_INTERACTION_FUNCTIONS,
    SIMILARITY_FUNCTIONS,
    maxsim_matrix,
    maxsim_of_pairs,
    similarity_matrix,
    similarity_pairs,
)

quickly = settings(max_examples=40, deadline=None, derandomize=True)


def random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def reference(name: str, first: object, second: object) -> np.ndarray:
    """Sentence-transformers' matrix, of float64 so that its own rounding does not count."""
    return SimilarityFunction.to_similarity_fn(name)(first, second).numpy()


def reference_pairs(name: str, first: object, second: object) -> np.ndarray:
    return SimilarityFunction.to_similarity_pairwise_fn(name)(first, second).numpy()


def test_names_are_those_of_sentence_transformers() -> None:
    assert [*SIMILARITY_FUNCTIONS, *LATE_INTERACTION_FUNCTIONS] == SimilarityFunction.possible_values()


@pytest.mark.parametrize("name", SIMILARITY_FUNCTIONS)
@given(n=st.integers(0, 40), m=st.integers(0, 40), dim=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
@quickly
def test_matrix_equals_sentence_transformers(name: str, n: int, m: int, dim: int, seed: int) -> None:
    first, second = random(n, dim, seed=seed, dtype=np.float64), random(m, dim, seed=seed + 1, dtype=np.float64)
    expected = reference(name, first, second)
    found = similarity_matrix(first, second, name)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)
    single = similarity_matrix(first.astype(np.float32), second.astype(np.float32), name)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SIMILARITY_FUNCTIONS)
@pytest.mark.parametrize("tile_elements", [1, 50, 1 << 18])
def test_tiles_make_no_difference(name: str, tile_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random(23, 7), random(31, 7, seed=1)
    expected = similarity_matrix(first, second, name)
    monkeypatch.setattr(similarity, "_TILE_ELEMENTS", tile_elements)
    monkeypatch.setattr(similarity, "_TILE_ROWS", 5)
    monkeypatch.setattr(similarity, "_TILE_COLUMNS", 4)
    np.testing.assert_allclose(similarity_matrix(first, second, name), expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(similarity_pairs(first, second[:23], name), similarity_pairs(first, second[:23], name))


@pytest.mark.parametrize("name", SIMILARITY_FUNCTIONS)
def test_pairs_equal_sentence_transformers(name: str) -> None:
    first, second = random(700, 200), random(700, 200, seed=1)
    found = similarity_pairs(first, second, name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference_pairs(name, first, second), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[:50], np.diagonal(similarity_matrix(first[:50], second[:50], name)), atol=1e-4)
    alone = [similarity_pairs(first[i : i + 1], second[i : i + 1], name)[0] for i in range(0, 700, 7)]
    assert np.array_equal(found[::7], alone)
    exact = similarity_pairs(first.astype(np.float64), second.astype(np.float64), name)
    assert np.array_equal(found, exact.astype(np.float32))
    strided = (np.asfortranarray(rows, dtype=np.float64) for rows in (first, second))
    assert np.array_equal(similarity_pairs(*strided, name), exact)


@pytest.mark.parametrize("name", SIMILARITY_FUNCTIONS)
def test_lone_embeddings_have_the_shapes_of_sentence_transformers(name: str) -> None:
    one, many = random(9), random(4, 9, seed=1)
    for first, second in ((one, many), (many, one), (one, one)):
        expected = reference(name, first, second)
        found = similarity_matrix(first, second, name)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3)
    found = similarity_pairs(one, many[0], name)
    assert found.shape == reference_pairs(name, one, many[0]).shape == ()
    assert isinstance(found, np.ndarray)
    assert similarity_matrix(list(many), many.tolist(), name).shape == (4, 4)


def test_near_vectors_keep_their_distance() -> None:
    """The expanded square in float32, as torch has it for many rows, gives 0 or 1e-3 here."""
    first = random(60, 64) * 10
    second = first + np.float32(1e-4) * random(60, 64, seed=1)
    exact = -np.linalg.norm(first.astype(np.float64) - second, axis=1)
    np.testing.assert_allclose(np.diagonal(similarity_matrix(first, second, "euclidean")), exact, rtol=1e-3)


def test_integers_and_half_precision_are_compared_in_float32() -> None:
    codes = np.array([[100, -100, 50], [127, 127, 127]], np.int8)
    assert similarity_matrix(codes, codes, "dot").tolist() == [[22500.0, 6350.0], [6350.0, 48387.0]]
    half = random(5, 400).astype(np.float16)
    found = similarity_matrix(half, half, "dot")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, half.astype(np.float64) @ half.T.astype(np.float64), rtol=1e-5, atol=1e-4)


def test_zeros_are_like_nothing() -> None:
    assert similarity_matrix(np.zeros((1, 3)), np.ones((2, 3)), "cosine").tolist() == [[0.0, 0.0]]
    assert similarity_pairs(np.zeros(3), np.ones(3), "cosine") == 0


def test_large_values_are_normalized_without_overflow() -> None:
    rows = np.array([[3e30, 4e30]], np.float32)
    np.testing.assert_allclose(similarity_matrix(rows, rows[:, ::-1], "cosine"), [[0.96]], rtol=1e-6)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_memory_is_bounded(name: str) -> None:
    first, second = random(400, 256), random(500, 256, seed=1)  # all differences together: 205 MB
    tracemalloc.start()
    similarity_matrix(first, second, name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_inputs_are_left_as_they_are() -> None:
    first, second = random(6, 5), random(7, 5, seed=1)
    before = first.copy(), second.copy()
    for name in SIMILARITY_FUNCTIONS:
        similarity_matrix(first, second, name)
        similarity_pairs(first, second[:6], name)
    assert np.array_equal(first, before[0])
    assert np.array_equal(second, before[1])


@pytest.mark.parametrize("compare", [similarity_matrix, similarity_pairs])
@pytest.mark.parametrize(
    ("first", "second", "name", "message"),
    [
        (random(2, 3), random(2, 3), "hamming", r"'hamming' is unknown; choose one of \['cosine', 'dot', 'euclidean'"),
        (random(2, 3), random(2, 3), "maxsim", "'maxsim' is unknown"),
        (random(2, 3), random(2, 4), "dot", r"3 dimensions, embeddings2 4|\(2, 3\) and \(2, 4\)"),
        (random(2, 2, 3), random(2, 3), "dot", r"embeddings1 must be \(num_embeddings, dim\)"),
        (random(2, 3), np.float32(1), "dot", "embeddings2 must be"),
        (random(2, 3), [[1.0], [1.0, 2.0]], "dot", "embeddings2 are no array"),
        (random(2, 3), [["a", "b", "c"]] * 2, "dot", "embeddings2 must be numbers"),
        ([[np.nan] * 3] * 2, random(2, 3), "dot", "embeddings1 hold NaN"),
        (random(2, 3), [[np.inf] * 3] * 2, "dot", "embeddings2 hold NaN or infinity"),
        (np.full((2, 3), 1e30, np.float32), np.full((2, 3), 1e30, np.float32), "dot", "too large"),
        (np.full((2, 3), 1e200), np.full((2, 3), 1e200), "cosine", "too large"),
        (np.full((2, 3), 3e38, np.float32), np.full((2, 3), -3e38, np.float32), "manhattan", "too large"),
    ],
)
def test_refused(compare, first, second, name, message) -> None:
    with pytest.raises(InputError, match=message):
        compare(first, second, name)


def test_pairs_of_unequal_number_are_refused() -> None:
    with pytest.raises(InputError, match=r"equal shape, got \(2, 3\) and \(1, 3\); similarity\(\) compares each"):
        similarity_pairs(random(2, 3), random(1, 3))


QUERIES = [random(length, 8, seed=length) for length in (3, 1, 6)]
DOCUMENTS = [random(length, 8, seed=10 + length) for length in (5, 2, 9, 1)]


@pytest.mark.parametrize("name", LATE_INTERACTION_FUNCTIONS)
def test_late_interaction_equals_sentence_transformers(name: str) -> None:
    found = maxsim_matrix(QUERIES, DOCUMENTS, name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(name, QUERIES, DOCUMENTS), rtol=1e-5, atol=1e-5)
    pairs = maxsim_of_pairs(QUERIES, DOCUMENTS[:3], name)
    np.testing.assert_allclose(pairs, reference_pairs(name, QUERIES, DOCUMENTS[:3]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pairs, np.diagonal(found[:, :3]), rtol=1e-6)


@pytest.mark.parametrize("name", LATE_INTERACTION_FUNCTIONS)
def test_late_interaction_of_lone_and_padded_embeddings(name: str) -> None:
    padded = np.zeros((3, 6, 8), np.float32)
    for row, query in zip(padded, QUERIES, strict=True):
        row[: len(query)] = query
    expected = maxsim_matrix(QUERIES, DOCUMENTS, name)
    np.testing.assert_allclose(maxsim_matrix(padded, DOCUMENTS, name), expected, rtol=1e-6)
    np.testing.assert_allclose(reference(name, padded, DOCUMENTS), expected, rtol=1e-5, atol=1e-5)
    assert maxsim_matrix(QUERIES[0], DOCUMENTS, name).tolist() == expected[:1].tolist()
    assert maxsim_of_pairs(QUERIES[0], DOCUMENTS[0], name).tolist() == expected[:1, 0].tolist()
    assert maxsim_matrix([], DOCUMENTS, name).shape == (0, 4)
    assert maxsim_matrix(QUERIES, [], name).shape == (3, 0)


def test_late_interaction_refused() -> None:
    with pytest.raises(InputError, match="as many queries as documents, got 3 and 4"):
        maxsim_of_pairs(QUERIES, DOCUMENTS, "maxsim")
    with pytest.raises(InputError, match="NaN"):
        maxsim_matrix([np.full((2, 8), np.nan, np.float32)], DOCUMENTS, "maxsim")
    with pytest.raises(InputError, match="8"):
        maxsim_matrix([random(2, 7)], DOCUMENTS, "maxsim")
    for no_list in (None, 3, np.array(3)):
        with pytest.raises(InputError, match="embeddings must be a list of matrices"):
            maxsim_matrix(no_list, DOCUMENTS, "maxsim")
