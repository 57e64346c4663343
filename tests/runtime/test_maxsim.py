"""MaxSim against a plain float64 oracle, its bits, its memory and its errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime import maxsim as module
from poolgraph.runtime.cpu import CpuInfo, read_cpu_info
from poolgraph.runtime.maxsim import EMPTY_DOCUMENT_SCORE, maxsim, maxsim_pairs

Rows = NDArray[np.float32]


def draw(generator: np.random.Generator, num_vectors: int, size: int) -> Rows:
    return generator.standard_normal((num_vectors, size), dtype=np.float32)


def draw_documents(generator: np.random.Generator, sizes: list[int], size: int) -> list[Rows]:
    return [draw(generator, num_vectors, size) for num_vectors in sizes]


def oracle(query: Rows, document: Rows) -> float:
    return float((query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum())


def same_bits(first: Rows, second: Rows) -> bool:
    return first.tobytes() == second.tobytes()


@pytest.mark.parametrize("num_query_vectors", [1, 2, 15, 32, 64])
@pytest.mark.parametrize("size", [1, 7, 96, 128, 768])
def test_scores_are_the_oracle_s(num_query_vectors: int, size: int) -> None:
    generator = np.random.default_rng(size)
    query = draw(generator, num_query_vectors, size)
    documents = draw_documents(generator, [1, 2, 15, 16, 17, 64, 200, 300], size)
    expected = np.array([oracle(query, document) for document in documents])
    scale = np.sqrt(size) * num_query_vectors
    assert np.abs(maxsim(query, documents) - expected).max() < 1e-5 * scale
    assert np.abs(maxsim(query, documents, mean=True) - expected / num_query_vectors).max() < 1e-5 * np.sqrt(size)


@settings(max_examples=60, deadline=None)
@example(num_query_vectors=41, size=400, sizes=[13, 193, 193, 253], seed=0)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_query_vectors=st.integers(1, 64),
    size=st.sampled_from([3, 16, 96, 128, 400]),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=12),
)
def test_a_score_has_the_same_bits_beside_any_other_documents(
    seed: int, num_query_vectors: int, size: int, sizes: list[int]
) -> None:
    generator = np.random.default_rng(seed)
    query = draw(generator, num_query_vectors, size)
    documents = draw_documents(generator, sizes, size)
    together = maxsim(query, documents)
    alone = np.concatenate([maxsim(query, [document]) for document in documents])
    order = generator.permutation(len(documents))
    shuffled = maxsim(query, [documents[index] for index in order])
    packed = maxsim(query, np.concatenate(documents), sizes)
    pairs = maxsim_pairs([draw(generator, 33, size), query], documents, [(1, index) for index in order])
    assert same_bits(together, alone)
    assert same_bits(together[order], shuffled)
    assert same_bits(together, packed)
    assert same_bits(together[order], pairs)


KERNEL_CHECK = """
import numpy as np
from poolgraph.runtime.maxsim import maxsim
generator = np.random.default_rng(0)
for size, num_query_vectors in ((128, 32), (96, 5), (768, 64), (2000, 40)):
    query = generator.standard_normal((num_query_vectors, size), dtype=np.float32)
    sizes = [*range(1, 80, 3), 300]
    documents = [generator.standard_normal((n, size), dtype=np.float32) for n in sizes]
    alone = [maxsim(query, [document])[0] for document in documents]
    assert np.array(alone).tobytes() == maxsim(query, documents).tobytes(), (size, num_query_vectors)
"""


@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX", "Nehalem"])
def test_bits_with_the_kernels_of_other_processors(kernels: str) -> None:
    # Haswell's add in another order in some columns of a matrix. Without OpenBLAS the variable has no effect.
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels}
    if kernels == "SkylakeX" and "avx512vl" not in read_cpu_info().features:
        pytest.skip("this processor cannot run them")
    outcome = subprocess.run(
        [sys.executable, "-c", KERNEL_CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("num_others", [0, 1, 7, 500])
def test_a_document_among_many(num_others: int) -> None:
    generator = np.random.default_rng(5)
    query, document = draw(generator, 32, 128), draw(generator, 77, 128)
    others = draw_documents(generator, list(generator.integers(1, 300, num_others)), 128)
    alone = maxsim(query, [document])
    for place in {0, num_others // 2, num_others}:
        assert same_bits(maxsim(query, [*others[:place], document, *others[place:]])[[place]], alone)


def test_a_document_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    query, documents = draw(generator, 8, 32), draw_documents(generator, [10, 1000, 33], 32)
    whole = maxsim(query, documents)
    monkeypatch.setattr(module, "BLOCK_BYTES", 16 * 1024)
    assert same_bits(maxsim(query, documents), whole)


def test_all_forms_of_documents_score_alike() -> None:
    generator = np.random.default_rng(2)
    query, stacked = draw(generator, 5, 24), generator.standard_normal((7, 20, 24), dtype=np.float32)
    listed = maxsim(query, list(stacked))
    assert same_bits(maxsim(query, stacked), listed)
    assert same_bits(maxsim(query, stacked.transpose(0, 2, 1).copy().transpose(0, 2, 1)), listed)
    assert same_bits(maxsim(query, stacked.reshape(-1, 24), np.full(7, 20)), listed)
    assert same_bits(maxsim(query.astype(np.float64), stacked.astype(np.float64)), listed)
    assert same_bits(maxsim(query.tolist(), stacked.tolist()), listed)


def test_half_precision_is_multiplied_in_single() -> None:
    generator = np.random.default_rng(3)
    query, documents = draw(generator, 5, 24), [d.astype(np.float16) for d in draw_documents(generator, [4, 30], 24)]
    assert same_bits(maxsim(query, documents), maxsim(query, [d.astype(np.float32) for d in documents]))


def test_arguments_are_left_as_they_are() -> None:
    generator = np.random.default_rng(4)
    query, document = draw(generator, 5, 24), draw(generator, 40, 24)
    before = query.copy(), document.copy()
    maxsim(query, [document, document])
    assert same_bits(query, before[0])
    assert same_bits(document, before[1])


def test_a_negative_best_product_counts_as_it_is() -> None:
    assert maxsim([[1.0, 0.0]], [[[-2.0, 5.0], [-3.0, 5.0]]]).tolist() == [-2.0]


def test_zero_has_one_sign() -> None:
    scores = maxsim([[1.0]], [[[-0.0]], [[0.0], [-0.0]], [[-0.0], [0.0]]])
    assert not np.signbit(scores).any()


@pytest.mark.parametrize("num_query_vectors", [1, 2, 9, 200])
@pytest.mark.parametrize("mean", [True, False])
def test_best_products_of_either_zero_score_alike(
    num_query_vectors: int, mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which zero is the largest depends on the order of a document's vectors."""
    best = np.full((1, num_query_vectors), -0.0, dtype=np.float32)
    monkeypatch.setattr(module, "_best_products", lambda *_: best)
    assert not np.signbit(maxsim(np.zeros((num_query_vectors, 3)), [np.zeros((2, 3))], mean=mean)).any()


def test_pairs_of_queries_of_different_lengths() -> None:
    generator = np.random.default_rng(6)
    queries, documents = draw_documents(generator, [3, 32, 1], 48), draw_documents(generator, [9, 120], 48)
    pairs = [(0, 1), (2, 0), (1, 1), (0, 0), (0, 1)]
    expected = np.concatenate([maxsim(queries[query], [documents[index]]) for query, index in pairs])
    assert same_bits(maxsim_pairs(queries, documents, pairs), expected)
    lengths = np.array([len(queries[query]) for query, _ in pairs])
    assert np.allclose(maxsim_pairs(queries, documents, pairs, mean=True), expected / lengths, rtol=1e-6)


def test_documents_without_vectors_score_below_all_others() -> None:
    query, empty = np.ones((2, 4), np.float32), np.zeros((0, 4), np.float32)
    with pytest.warns(UserWarning, match="1 documents have no vectors"):
        scores = maxsim(query, [empty, np.ones((3, 4), np.float32)])
    assert scores.tolist() == [np.float32(EMPTY_DOCUMENT_SCORE), 8.0]
    with pytest.warns(UserWarning, match="no vectors"):
        assert maxsim_pairs([query], [empty], [(0, 0)], mean=True).tolist() == [np.float32(EMPTY_DOCUMENT_SCORE / 2)]


def test_a_query_without_vectors_scores_zero() -> None:
    assert maxsim(np.zeros((0, 4)), [np.ones((3, 4))], mean=True).tolist() == [0.0]


def test_nothing_to_score() -> None:
    assert maxsim(np.ones((2, 4)), []).shape == (0,)
    assert maxsim_pairs([np.ones((2, 4))], [], []).shape == (0,)


@pytest.mark.parametrize("num_cores", [1, 2, 64])
def test_memory_is_bounded(num_cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_cpu_info", lambda: CpuInfo(model="", num_cores=num_cores, features=()))
    generator = np.random.default_rng(7)
    query, documents = draw(generator, 256, 64), generator.standard_normal((800, 200, 64), dtype=np.float32)
    whole_product = 4 * 800 * 200 * 256
    tracemalloc.start()
    try:
        maxsim(query, documents)
        maxsim(query, list(documents))
        maxsim(query, documents.reshape(1, -1, 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole_product > 2 * 64 * 2**20
    assert peak < 64 * 2**20


@pytest.mark.parametrize(
    ("query", "documents", "lengths", "message"),
    [
        (np.ones(4), [np.ones((2, 4))], None, "query must be an array of numbers (num_vectors, size)"),
        (np.ones((2, 4)), [np.ones((2, 4)), np.ones((2, 5))], None, "document 1 has vectors of 5 values, the query"),
        (np.ones((2, 4)), [np.ones((2, 4)), np.ones(4)], None, "document 1 must be an array of numbers"),
        (np.ones((2, 4)), np.ones((2, 4)), None, "document 0 must be an array of numbers"),
        (np.ones((2, 4)), [np.full((2, 4), "a")], None, "document 0 must be an array of numbers"),
        (np.ones((2, 4)), np.ones((6, 4)), [2, 3], "in all the 6 vectors of documents; got [2 3]"),
        (np.ones((2, 4)), np.ones((6, 4)), [7, -1], "in all the 6 vectors"),
        (np.ones((2, 4)), np.ones((6, 3)), [6], "documents has vectors of 3 values"),
    ],
)
def test_wrong_shapes_are_refused(query: Rows, documents: Rows, lengths: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        maxsim(query, documents, lengths)


@pytest.mark.parametrize("pair", [(1, 0), (0, 1), (-1, 0)])
def test_pairs_that_are_not_there(pair: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="there are 1 queries and 1 documents"):
        maxsim_pairs([np.ones((2, 4))], [np.ones((2, 4))], [pair])


def test_queries_of_different_widths_are_refused() -> None:
    with pytest.raises(InputError, match="query 1 has vectors of 5 values"):
        maxsim_pairs([np.ones((2, 4)), np.ones((2, 5))], [np.ones((2, 4))], [(0, 0)])
