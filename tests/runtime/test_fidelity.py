"""The numbers of agreement, against scipy, scikit-learn and sets counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score

from poolgraph.runtime.fidelity import (
    average_ranks,
    label_agreement,
    largest_difference,
    ndcg_at,
    recall_at,
    spearman,
    top_indices,
    top_overlap,
)


@pytest.fixture
def random():
    return np.random.default_rng(7)


@pytest.mark.parametrize("num_levels", [2, 5, 1000])
def test_ranks_and_their_correlation_are_scipys(random, num_levels):
    first = random.integers(num_levels, size=200).astype(np.float32)
    second = first + random.integers(num_levels, size=200)
    np.testing.assert_array_equal(average_ranks(first), stats.rankdata(first))
    expected = stats.spearmanr(first, second).statistic
    assert 0.3 < expected < 0.95
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12)
    assert spearman(first.reshape(20, 10), second.reshape(20, 10)) == spearman(first, second)


def test_ranks_by_hand():
    assert average_ranks(np.array([0.5, 0.1, 0.5, 0.9])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 90.0])) == 1.0
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == -1.0


def test_equal_values_have_no_correlation():
    assert math.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))
    assert math.isnan(spearman(np.array([2.0]), np.array([2.0])))


def test_the_best_are_in_order_and_the_first_of_equals_comes_first():
    scores = np.array([[0.1, 0.9, 0.5, 0.9], [0.0, 0.0, 0.0, 0.0]])
    assert top_indices(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2]]
    assert top_indices(scores, 9).shape == (2, 4)
    assert top_indices(np.tile([1.0, 2.0], (1, 300)), 300).tolist() == [list(range(1, 600, 2))]


def test_overlap_of_the_best():
    first = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    second = np.array([[4.0, 5.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    assert top_overlap(first, second, 2) == 0.5
    assert top_overlap(first, second, 3) == (1 + 1 / 3) / 2
    assert top_overlap(first, second, 1) == 0.0
    assert top_overlap(first, first, 4) == 1.0


def test_recall_by_hand():
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.1, 0.0]])
    relevant = np.array([[True, False, True, False], [False, False, False, True]])
    assert recall_at(scores, relevant, 2) == 0.25
    assert recall_at(scores, relevant, 3) == 0.5
    assert recall_at(scores, relevant, 10) == 1.0


@pytest.mark.parametrize("num_relevant", [1, 3, 15])
def test_gain_is_scikit_learns(random, num_relevant):
    scores = random.standard_normal((30, 40))
    relevant = np.zeros(scores.shape, dtype=bool)
    for row in relevant:
        row[random.choice(40, size=num_relevant, replace=False)] = True
    expected = ndcg_score(relevant, scores, k=10)
    assert 0.05 < expected < 0.9
    assert ndcg_at(scores, relevant, 10) == pytest.approx(expected, abs=1e-12)


def test_gain_by_hand():
    scores = np.array([[3.0, 2.0, 1.0]])
    for place, gain in ((0, 1.0), (1, 1 / math.log2(3)), (2, 0.5)):
        assert ndcg_at(scores, np.arange(3)[None] == place, 10) == pytest.approx(gain)


def test_labels_and_differences():
    first = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], dtype=np.float32)
    second = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], dtype=np.float32)
    assert label_agreement(first, second) == pytest.approx(2 / 3)
    assert largest_difference(first, second) == pytest.approx(0.2)
    assert largest_difference(second, first) == pytest.approx(0.2)
