"""Sparse embeddings: what is kept, and how it reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from poolgraph.errors import InputError
from poolgraph.runtime.sparse import check_active_dims, keep_largest, sparsify, weigh_words

WEIGHTS = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.sampled_from([0, 0, 1, 2, 3])
)


@given(rows=WEIGHTS)
def test_nothing_is_lost(rows: np.ndarray) -> None:
    found = sparsify(rows)
    assert np.array_equal(np.stack([embedding.to_dense() for embedding in found]), rows)
    for embedding in found:
        assert (embedding.values != 0).all()
        assert (np.diff(embedding.indices) > 0).all()
        assert len(embedding) == len(embedding.to_dict())
        assert embedding.to_dict() == dict(zip(embedding.indices.tolist(), embedding.values.tolist(), strict=True))


@given(rows=WEIGHTS, number=st.integers(1, 14))
def test_the_largest_are_kept(rows: np.ndarray, number: int) -> None:
    before = rows.copy()
    kept = keep_largest(rows, number)
    assert np.array_equal(rows, before)
    for row, found in zip(rows, kept, strict=True):
        order = np.argsort(-row, kind="stable")[:number]
        expected = np.zeros_like(row)
        expected[order] = row[order]
        assert np.array_equal(found, expected)


def test_all_are_kept_unless_told() -> None:
    rows = np.ones((2, 3), dtype=np.float32)
    assert keep_largest(rows, None) is rows


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "3"])
def test_a_number_that_is_none(number: object) -> None:
    with pytest.raises(InputError, match="max_active_dims must be an int of 1 or more"):
        check_active_dims(number)


def test_numbers_of_numpy_are_numbers() -> None:
    assert check_active_dims(np.int64(3)) == 3


@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    data=st.data(),
    skipped=st.frozensets(st.integers(0, 6), max_size=3),
)
def test_a_word_weighs_what_its_heaviest_token_does(ids: list[int], data: st.DataObject, skipped: frozenset) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=len(ids), max_size=len(ids)))
    expected: dict[int, float] = {}
    for token_id, weight in zip(ids, weights, strict=True):
        if weight and token_id not in skipped:
            expected[token_id] = max(weight, expected.get(token_id, 0.0))
    given = np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32)
    found = weigh_words(*given, skipped=tuple(skipped), size=7)
    assert found.to_dict() == dict(sorted(expected.items()))
    assert found.size == 7


@given(rows=WEIGHTS, number=st.integers(1, 14))
def test_an_embedding_keeps_what_its_row_keeps(rows: np.ndarray, number: int) -> None:
    for embedding, row in zip(sparsify(rows), keep_largest(rows, number), strict=True):
        assert np.array_equal(embedding.keep_largest(number).to_dense(), row)
        assert embedding.keep_largest(None) is embedding
