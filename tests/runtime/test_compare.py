import numpy as np
import pytest

from poolgraph.runtime.compare import (
    ACTIVATED,
    THRESHOLDS,
    Threshold,
    allow_other_experts,
    compare_answers,
    cosine_rows,
    most_missed,
)
from poolgraph.runtime.verify import build_row

FP32 = THRESHOLDS["fp32"]


def test_thresholds():
    assert THRESHOLDS["fp32"] == Threshold(min_cosine=0.99999, max_difference=1e-4)
    assert (THRESHOLDS["fp16"].min_cosine, THRESHOLDS["bf16"].min_cosine) == (0.9995, 0.999)
    assert (THRESHOLDS["int8"].min_cosine, THRESHOLDS["int8"].mean_cosine) == (0.98, 0.995)


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.01), ("bf16", 0.05), ("int8", 0.05)])
def test_a_single_number_is_held_to_more_than_its_sign(precision, allowed):
    """A reranker's answer has no direction, so its cosine is 1 whatever it is."""
    reference = [np.array([0.8], np.float32), np.array([0.1], np.float32)]
    for error, passes in ((0.9 * allowed, True), (1.1 * allowed, False)):
        answers = [reference[0], reference[1] + np.float32(0.8 * error)]
        assert compare_answers(reference, answers, ACTIVATED[precision]).passed is passes


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_single_number_near_zero_may_change_its_sign(precision):
    reference = [np.array([0.8], np.float32), np.array([1e-5], np.float32)]
    answers = [reference[0], -reference[1]]
    assert compare_answers(reference, answers, ACTIVATED[precision]).passed
    assert not compare_answers(reference, answers, Threshold(min_cosine=0.9)).passed  # nothing else would judge it
    pairs = [np.array([0.8, 1e-5], np.float32)] * 2, [np.array([-0.8, 1e-5], np.float32)] * 2
    assert not compare_answers(*pairs, ACTIVATED[precision]).passed


def test_equal_answers_pass():
    answers = list(np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32))
    found = compare_answers(answers, answers, FP32)
    assert found.passed
    assert (found.num_texts, found.max_difference) == (5, 0.0)
    assert found.min_cosine == pytest.approx(1.0)


def test_difference_is_a_share_of_the_largest_answer():
    reference = [np.array([100.0, 1.0], np.float32)]
    found = compare_answers(reference, [np.array([100.0, 1.02], np.float32)], FP32)
    assert found.max_difference == pytest.approx(2e-4, rel=1e-3)
    assert not found.passed
    assert compare_answers(reference, [np.array([100.0, 1.009], np.float32)], FP32).passed


def test_one_turned_text_fails():
    reference = list(np.eye(4, dtype=np.float32))
    answers = [row.copy() for row in reference]
    answers[2] = np.array([0.0, 0.1, 1.0, 0.0], np.float32)
    loose = Threshold(min_cosine=0.999)
    assert compare_answers(reference, answers, loose).min_cosine == pytest.approx(1 / np.sqrt(1.01))
    assert not compare_answers(reference, answers, loose).passed


def test_mean_cosine_is_required_too():
    reference = list(np.eye(2, dtype=np.float32))
    answers = [np.array([1.0, 0.15], np.float32), np.array([0.15, 1.0], np.float32)]
    assert compare_answers(reference, answers, Threshold(min_cosine=0.98)).passed
    assert not compare_answers(reference, answers, THRESHOLDS["int8"]).passed


def test_a_share_of_the_vectors_may_miss_the_minimum_and_not_what_is_least_nor_the_mean():
    reference = np.tile(np.eye(2, dtype=np.float32), (50, 1))
    answers = reference.copy()
    answers[:5] = [0.6, 0.8]
    for changes, passes in [
        ({}, True),
        ({"may_miss": 0.04}, False),
        ({"least_cosine": 0.7}, False),
        ({"mean_cosine": 0.99}, False),
        ({"max_difference": 0.5}, False),
    ]:
        threshold = Threshold(**{"min_cosine": 0.98, "may_miss": 0.05, "least_cosine": 0.5, **changes})
        assert compare_answers([reference], [answers], threshold).passed is passes


@pytest.mark.parametrize(("length", "most"), [(1, 1), (2, 1), (5, 2), (16, 4), (43, 8), (100, 13), (512, 45)])
def test_those_that_may_miss_do_not_crowd_in_one_text(length, most):
    """Whatever the other texts are: 2,000 tokens that all agree would spare a hundred."""
    assert most_missed(0.05, length) == most
    assert most_missed(0.0, length) == 0
    others, threshold = np.ones((2000, 2), np.float32), allow_other_experts(THRESHOLDS["int8"])
    for missed, crowded in [(most, None), (most + 1, (most + 1, length))][: 1 + (most < length)]:
        rows = np.ones((length, 2), np.float32)
        rows[:missed] = [2, 1]
        for order in (1, -1):
            reference, answers = [others, np.ones_like(rows)][::order], [others, rows][::order]
            found = compare_answers(reference, answers, threshold)
            assert (found.passed, found.crowded) == (crowded is None, crowded)


@pytest.mark.parametrize(("precision", "mean"), [("int8", 0.995), ("bf16", 0.999)])
def test_the_mean_of_an_embedder_with_experts_holds(precision, mean):
    threshold = allow_other_experts(THRESHOLDS[precision])
    assert (threshold.mean_cosine, threshold.least_cosine, threshold.may_miss) == (mean, 0.5, 0.05)


def test_the_report_says_which_text_is_crowded():
    threshold = allow_other_experts(THRESHOLDS["int8"])
    rows = np.ones((5, 2), np.float32) + np.float32([1, 0])
    found = compare_answers([np.ones((95, 2)), np.ones_like(rows)], [np.ones((95, 2)), rows], threshold)
    row = build_row(found, threshold, variant="v", family="token", check="alone")
    assert (row.passed, row.check) == (False, "alone, 5 of a text's 5 vectors below 0.98 (allowed 2)")


def test_none_of_those_that_may_miss_is_no_number():
    answers = np.ones((100, 3), np.float32)
    answers[0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        found = compare_answers([np.ones((100, 3), np.float32)], [answers], Threshold(min_cosine=0.9, may_miss=0.05))
    assert not found.passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_fail(value):
    reference = [np.ones(3, np.float32)]
    with np.errstate(invalid="ignore"):
        found = compare_answers(reference, [np.array([1, 1, value], np.float32)], Threshold(min_cosine=-1.0))
    assert not found.passed


@pytest.mark.parametrize("answers", [[], [np.ones(3, np.float32)] * 2, [np.ones(4, np.float32)]])
def test_other_shapes_fail(answers):
    assert not compare_answers([np.ones(3, np.float32)], answers, Threshold(min_cosine=-1.0)).passed


def test_nothing_compared_is_no_pass():
    assert not compare_answers([], [], Threshold(min_cosine=-1.0)).passed


def test_token_answers_of_any_length():
    rows = [np.ones((2, 3), np.float32), np.full((5, 3), 2.0, np.float32)]
    assert compare_answers(rows, rows, FP32).passed


def test_cosine_of_zeros():
    cosines = cosine_rows(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(cosines, [1.0, 0.0])
