import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolgraph.runtime.planner import MIN_SPLIT_TOKENS, Batch, count_padding, plan_batches, plan_padded_batches

LENGTHS = st.lists(st.integers(1, 600), max_size=120)
BUDGETS = st.integers(1, 2048)
RUNS = st.integers(1, 64)


def shapes(batches):
    return [(len(batch.indices), batch.length) for batch in batches]


@pytest.mark.parametrize("plan", [plan_batches, plan_padded_batches])
@given(lengths=LENGTHS, budget=BUDGETS, runs=RUNS)
def test_every_index_once_within_the_budget_longest_first(plan, lengths, budget, runs):
    batches = plan(lengths, max_batch_tokens=budget, runs=runs)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))
    assert [batch.length for batch in batches] == sorted((batch.length for batch in batches), reverse=True)
    for batch in batches:
        assert batch.length == max(lengths[index] for index in batch.indices)
        assert batch.num_tokens <= budget or len(batch.indices) == 1


@given(lengths=LENGTHS, budget=BUDGETS, runs=RUNS)
def test_uniform_batches_have_no_padding(lengths, budget, runs):
    assert count_padding(lengths, plan_batches(lengths, max_batch_tokens=budget, runs=runs)) == 0


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
    assert plan_batches([]) == plan_padded_batches([]) == ()


def test_batch_counts_its_tokens():
    assert Batch(indices=(4, 2), length=7).num_tokens == 14
