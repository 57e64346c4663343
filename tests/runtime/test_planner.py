from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolgraph.runtime.planner import (
    MIN_SPLIT_TOKENS,
    count_padding,
    plan_batches,
    plan_packed_batches,
    plan_padded_batches,
    plan_sorted_batches,
)

LENGTHS = st.lists(st.integers(1, 600), max_size=120)
BUDGETS = st.integers(1, 2048)
RUNS = st.integers(1, 64)


def shapes(batches):
    return [(len(batch.indices), batch.length) for batch in batches]


@pytest.mark.parametrize("plan", [plan_batches, plan_padded_batches, plan_packed_batches])
@given(lengths=LENGTHS, budget=BUDGETS, runs=RUNS)
def test_every_index_once_within_the_budget_longest_first(plan, lengths, budget, runs):
    batches = plan(lengths, max_batch_tokens=budget, runs=runs)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))
    assert [batch.length for batch in batches] == sorted((batch.length for batch in batches), reverse=True)
    for batch in batches:
        assert batch.length == max(lengths[index] for index in batch.indices)
        assert batch.num_tokens <= budget or len(batch.indices) == 1


@pytest.mark.parametrize("plan", [plan_batches, plan_packed_batches])
@given(lengths=LENGTHS, budget=BUDGETS, runs=RUNS)
def test_uniform_and_packed_batches_have_no_padding(plan, lengths, budget, runs):
    batches = plan(lengths, max_batch_tokens=budget, runs=runs)
    assert count_padding(lengths, batches) == 0
    for batch in batches:
        assert batch.num_tokens == sum(lengths[index] for index in batch.indices)


@given(lengths=LENGTHS, budget=BUDGETS, runs=RUNS)
def test_packed_batches_are_few_and_the_same_for_the_same_texts(lengths, budget, runs):
    few = plan_packed_batches(lengths, max_batch_tokens=budget)
    for batch, following in pairwise(few):
        assert batch.num_tokens + following.num_tokens > budget
    batches = plan_packed_batches(lengths, max_batch_tokens=budget, runs=runs)
    assert len(batches) <= -(-len(few) // runs) * runs
    assert batches == plan_packed_batches(tuple(lengths), max_batch_tokens=budget, runs=runs)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=9), budget=BUDGETS, runs=st.integers(1, 5))
def test_no_cut_has_a_smaller_largest_packed_batch(lengths, budget, runs):
    """Of the cuts of the texts, longest first, into as many batches as are allowed."""
    order = sorted(lengths, reverse=True)
    few = len(plan_packed_batches(lengths, max_batch_tokens=budget))
    most = min(-(-few // runs) * runs, len(lengths))
    cuts = [[0, *places, len(order)] for places in combinations(range(1, len(order)), most - 1)]
    best = min(max(sum(order[start:stop]) for start, stop in pairwise(cut)) for cut in cuts)
    found = max(batch.num_tokens for batch in plan_packed_batches(lengths, max_batch_tokens=budget, runs=runs))
    assert found <= max(best, min(MIN_SPLIT_TOKENS, budget))


@pytest.mark.parametrize("plan", [plan_batches, plan_padded_batches])
@given(lengths=LENGTHS, budget=BUDGETS, runs=RUNS)
def test_every_run_has_work_where_batches_can_be_cut(plan, lengths, budget, runs):
    batches = plan(lengths, max_batch_tokens=budget, runs=runs)
    if len(batches) < runs:
        assert all(len(batch.indices) == 1 or batch.num_tokens <= MIN_SPLIT_TOKENS for batch in batches)


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60), budget=BUDGETS)
def test_padding_is_counted(lengths, budget):
    batches = plan_padded_batches(lengths, max_batch_tokens=budget)
    assert count_padding(lengths, batches) == sum(batch.num_tokens for batch in batches) - sum(lengths)


def test_a_group_is_cut_evenly():
    assert shapes(plan_batches([128] * 32, max_batch_tokens=1024)) == [(8, 128)] * 4
    assert shapes(plan_batches([100] * 11, max_batch_tokens=1000)) == [(5, 100), (6, 100)]


def test_groups_run_longest_first():
    assert shapes(plan_batches([3, 9, 3, 9, 9], max_batch_tokens=1024)) == [(3, 9), (2, 3)]


def test_the_largest_group_is_split_for_idle_runs():
    assert shapes(plan_batches([64] * 8, max_batch_tokens=1024, runs=4)) == [(2, 64)] * 4
    assert shapes(plan_batches([64] * 8 + [5] * 4, max_batch_tokens=1024, runs=3)) == [(4, 64), (4, 64), (4, 5)]
    assert shapes(plan_batches([4, 4], max_batch_tokens=1024, runs=2)) == [(2, 4)]


def test_a_text_over_the_budget_is_alone():
    assert shapes(plan_batches([600, 600, 5], max_batch_tokens=512)) == [(1, 600), (1, 600), (1, 5)]


def test_no_texts_no_batches():
    assert plan_batches([]) == plan_padded_batches([]) == plan_packed_batches([]) == ()


def test_batches_count_the_tokens_that_they_compute():
    lengths = [9, 3, 5, 4]
    plans = (plan_padded_batches(lengths), plan_sorted_batches(lengths, 4), plan_packed_batches(lengths))
    assert [batch.num_tokens for (batch,) in plans] == [36, 36, 21]


def test_a_packed_batch_is_left_whole_where_it_fills_the_cores():
    assert shapes(plan_packed_batches([40] * 12, runs=4)) == [(3, 40)] * 4
    assert shapes(plan_packed_batches([40] * 12, runs=4, lone_fills=True)) == [(12, 40)]
    assert shapes(plan_packed_batches([40] * 16, runs=4, lone_fills=True)) == [(4, 40)] * 4  # more than one batch


@pytest.mark.parametrize(
    ("lengths", "budget", "runs", "expected"),
    [
        ([40, 10, 20, 30], 512, 1, [[40, 30, 20, 10]]),
        ([100] * 6, 512, 1, [[100] * 3] * 2),  # not five and one
        ([300, 200, 200, 200], 512, 2, [[300, 200], [200, 200]]),
        ([100] * 12, 512, 2, [[100] * 3] * 4),  # three fit the budget, but one run would have two of them
        ([900, 30, 20, 10], 512, 2, [[900], [30, 20, 10]]),
        ([8] * 4, 512, 2, [[8] * 4]),  # too small for two
        ([20, 20, 10, 10], 512, 4, [[20], [20, 10], [10]]),
    ],
)
def test_packed_batches_by_example(lengths, budget, runs, expected):
    batches = plan_packed_batches(lengths, max_batch_tokens=budget, runs=runs)
    assert [[lengths[index] for index in batch.indices] for batch in batches] == expected
