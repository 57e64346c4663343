"""Buckets, the assignment of texts to them, and the planner: every text fits, nothing cheaper is missed."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolgraph.errors import InputError
from poolgraph.runtime import bucket_assignment
from poolgraph.runtime.bucket_assignment import assign_texts
from poolgraph.runtime.bucket_planner import (
    BucketBudget,
    batch_ladder,
    choose_edges,
    count_lengths,
    guess_lengths,
    plan_buckets,
    single_bucket,
)
from poolgraph.runtime.buckets import (
    RUN_COST_TOKENS,
    Bucket,
    PaddingCounter,
    count_cost,
    count_padding,
    halve_bucket,
    leave_out,
    lone_bucket,
    packed_bucket,
    round_length,
)

LAYOUTS = ("padded", "packed")
LENGTHS = st.lists(st.integers(1, 70), max_size=60)


@st.composite
def bucket_sets(draw, layout):
    """Some buckets of a layout; of packed ones such that have slots enough."""
    if layout == "padded":
        rows = st.builds(Bucket, max_length=st.integers(1, 64), batch_size=st.integers(1, 9))
    else:
        rows = st.builds(
            lambda length, more, texts: packed_bucket(length + more, length, texts),
            st.integers(1, 64),
            st.integers(0, 100),
            st.integers(1, 9),
        )
    return draw(st.lists(rows, min_size=1, max_size=5, unique=True))


def fits(bucket, lengths):
    """Whether texts fit, counted without the code under test."""
    if not lengths or max(lengths) > bucket.max_length:
        return False
    if bucket.num_tokens is None:
        return len(lengths) <= bucket.batch_size
    left = bucket.num_tokens - sum(lengths)
    fillers = [bucket.max_length] * (left // bucket.max_length) + [left % bucket.max_length] * bool(
        left % bucket.max_length
    )
    return left >= 0 and len(lengths) + len(fillers) <= bucket.batch_size


@pytest.mark.parametrize(("length", "size"), [(8, 4), (16, 2)], ids=["a text too long", "a text too many"])
def test_a_bucket_of_just_as_many_tokens_may_not_take_the_texts(length, size):
    lengths = [16, 8, 8]
    batches = assign_texts(lengths, [Bucket(max_length=length, batch_size=size), Bucket(max_length=16, batch_size=3)])
    assert all(fits(batch.bucket, [lengths[index] for index in batch.indices]) for batch in batches)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_text_is_in_one_bucket_that_it_fits_into(layout):
    @given(LENGTHS, bucket_sets(layout))
    @settings(max_examples=200, deadline=None)
    def check(lengths, buckets):
        batches = assign_texts(lengths, buckets)
        assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))
        for batch in batches:
            own = [lengths[index] for index in batch.indices]
            assert fits(batch.bucket, own)
            assert batch.num_tokens == sum(own)
        longest = [max(lengths[index] for index in batch.indices) for batch in batches]
        assert longest == sorted(longest, reverse=True)

    check()


@pytest.mark.parametrize("exact_texts", [0, 20, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("run_cost", [0, RUN_COST_TOKENS])
def test_no_single_bucket_is_cheaper(layout, run_cost, exact_texts):
    @given(st.lists(st.integers(1, 64), min_size=1, max_size=60), bucket_sets(layout))
    @settings(max_examples=100, deadline=None)
    def check(lengths, buckets):
        cost = count_cost(assign_texts(lengths, buckets, run_cost=run_cost), run_cost)
        for bucket in buckets:
            if bucket.max_length >= max(lengths):
                assert cost <= count_cost(assign_texts(lengths, [bucket], run_cost=run_cost), run_cost)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_assignment, "EXACT_TEXTS", exact_texts)
        check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_assignment_is_the_cheapest_cut(layout):
    @given(st.lists(st.integers(1, 64), min_size=1, max_size=8), bucket_sets(layout), st.sampled_from([0, 5, 512]))
    @settings(max_examples=150, deadline=None)
    def check(lengths, buckets, run_cost):
        if max(lengths) > max(bucket.max_length for bucket in buckets):
            return
        ordered = sorted(lengths, reverse=True)

        @cache
        def best(start):
            if start == len(ordered):
                return 0
            return min(
                bucket.size + run_cost + best(stop)
                for bucket in buckets
                for stop in range(start + 1, len(ordered) + 1)
                if fits(bucket, ordered[start:stop])
            )

        try:
            expected = best(0)
        except ValueError:
            return
        assert count_cost(assign_texts(lengths, buckets, run_cost=run_cost), run_cost) == expected

    check()


def test_texts_beyond_all_buckets_get_their_own():
    batches = assign_texts([100, 3, 70, 65], [Bucket(max_length=64, batch_size=4)])
    assert [(str(batch.bucket), batch.indices) for batch in batches] == [
        ("1x104", (0,)),
        ("1x72", (2,)),
        ("1x72", (3,)),
        ("1x72", (1,)),
    ]
    assert assign_texts([100], []) == assign_texts([100], [Bucket(max_length=8, batch_size=1)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_texts_that_fill_a_bucket_are_one_batch(layout):
    full = Bucket(max_length=16, batch_size=32) if layout == "padded" else packed_bucket(512, 16, 32)
    larger = Bucket(max_length=16, batch_size=64) if layout == "padded" else packed_bucket(1024, 16, 64)
    (batch,) = assign_texts([16] * 32, [larger, full])
    assert (batch.bucket, batch.indices) == (full, tuple(range(32)))


@pytest.mark.parametrize("max_graphs", [2, 5, 32])
def test_large_packed_buckets_are_for_many_short_texts_or_for_few_long_ones(max_graphs):
    """The attention kernel starts blocks for ``batch_size`` texts of ``max_length`` tokens, whatever there is."""
    buckets = plan_buckets(BucketBudget(max_model_len=8192, max_graphs=max_graphs), "packed")
    assert all(bucket.batch_size * bucket.max_length < 40 * bucket.size for bucket in buckets)
    lengths = [4000, *[12] * 2000, 700]
    batches = assign_texts(lengths, buckets)
    for batch in batches:
        longest = max(lengths[index] for index in batch.indices)
        assert (batch.bucket.max_length > 512) == (longest > 512)
    most = max(len(batch.indices) for batch in batches)
    assert most > 500, "what is short has slots enough"


@pytest.mark.parametrize("max_model_len", [512, 8192])
def test_texts_of_some_length_do_not_bring_back_the_rows_of_short_ones(max_model_len):
    buckets = plan_buckets(BucketBudget(max_model_len=max_model_len), "packed")
    rows = {}
    for length in (16, 100, 512):
        batches = assign_texts([length] * (16384 // length), buckets)
        rows[length] = max(batch.bucket.batch_size for batch in batches)
        assert count_padding(batches).waste < 0.01
    assert rows[16] > 1024
    assert rows[100] == rows[512] < 300


@pytest.mark.parametrize("sizes", [(512, 16384), (1024, 65536), (2048, 65536), (8192, 16384)], ids=str)
@pytest.mark.parametrize("max_graphs", range(18, 33))
def test_forms_with_fewer_rows_leave_graphs_for_small_buckets(sizes, max_graphs):
    budget = BucketBudget(max_model_len=sizes[0], max_batch_tokens=sizes[1], max_graphs=max_graphs)
    assert min(bucket.size for bucket in plan_buckets(budget, "packed")) <= 100


def test_many_texts_are_cut_like_few():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4, 0.8, 5000), 3, 512).astype(int).tolist()
    for layout, most in (("padded", 0.15), ("packed", 0.06)):
        budget = BucketBudget(max_model_len=512)
        buckets = plan_buckets(budget, layout, count_lengths(lengths, 512))
        own = count_padding(assign_texts(lengths, buckets))
        alone = count_padding(assign_texts(lengths, [single_bucket(budget, layout)]))
        assert own.real_tokens == alone.real_tokens == sum(lengths)
        assert own.waste < most
        assert own.padded_tokens < alone.padded_tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_texts_beyond_all_buckets_are_not_weighed_against_each_others(layout, monkeypatch):
    stops, asked = bucket_assignment._Choices.stops, []

    def watched(choices, indices, places):
        asked.append(len(indices) * len(places))
        return stops(choices, indices, places)

    monkeypatch.setattr(bucket_assignment._Choices, "stops", watched)
    lengths = np.random.default_rng(0).integers(9, 30000, 3000).tolist()
    batches = assign_texts(lengths, [lone_bucket(8, layout)])
    assert sorted(index for batch in batches for index in batch.indices) == list(range(3000))
    assert sum(asked) < 4 * 3000 + 128 * 3000


def test_texts_of_a_length_keep_their_order():
    lengths = [8, 16, 24] * 700
    batches = assign_texts(lengths, [Bucket(max_length=24, batch_size=7)])
    order = [index for batch in batches for index in batch.indices]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def test_a_bucket_is_asked_for_once_for_all_texts_of_a_rounded_length():
    asked = []
    assign_texts(
        [66, 3, 70, 65, 100],
        [Bucket(max_length=64, batch_size=4)],
        lone=lambda n: asked.append(n) or lone_bucket(n, "padded"),
    )
    assert asked == [70, 100]


def test_many_texts_share_the_bucket_of_a_longer_one_where_that_is_cheaper():
    def lone(length):
        return Bucket(max_length=round_length(length), batch_size=64 if length == 100 else 1)

    batches = assign_texts([200, 100] + [64] * 2000, [Bucket(max_length=64, batch_size=1)], lone=lone)
    assert [batch.bucket.max_length for batch in batches] == [200] + [104] * 32


# --- shapes


def test_sizes_of_buckets():
    assert (Bucket(max_length=16, batch_size=4).size, Bucket(max_length=16, batch_size=4).layout) == (64, "padded")
    packed = packed_bucket(100, 30, 5)
    assert (packed.size, packed.layout, packed.batch_size) == (100, "packed", 9)
    assert [round_length(length) for length in (1, 8, 9)] == [8, 8, 16]
    assert str(packed) == "100 tokens of at most 9x30"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_length": 0, "batch_size": 1}, "at least 1"),
        ({"max_length": 8, "batch_size": 2**28}, "2147483647 tokens at most"),
        ({"max_length": 8, "batch_size": 2**80, "num_tokens": 2**80}, "2147483647 tokens at most"),
        ({"max_length": 8, "batch_size": 1, "num_tokens": 4}, "no place for a text"),
        ({"max_length": 8, "batch_size": 3, "num_tokens": 24}, "needs at least 4 slots"),
    ],
)
def test_shapes_that_are_none(sizes, message):
    with pytest.raises(InputError, match=message):
        Bucket(**sizes)


@given(st.integers(1, 64), st.integers(0, 300), st.integers(1, 40), st.booleans())
def test_halves_are_smaller_and_hold_the_longest_text(length, more, texts, is_packed):
    bucket = packed_bucket(length + more, length, texts) if is_packed else Bucket(max_length=length, batch_size=texts)
    for longest in {1, length}:
        half = halve_bucket(bucket, longest)
        assert half.layout == bucket.layout
        assert half.size <= bucket.size
        assert fits(half, [longest])
    seen = [bucket]
    while halve_bucket(seen[-1], 1).size < seen[-1].size:
        seen.append(halve_bucket(seen[-1], 1))
    assert seen[-1].size <= 8


def test_buckets_without_one():
    large, small, single = (Bucket(max_length=8, batch_size=size) for size in (4, 2, 1))
    assert leave_out((large, small), large) == (small,)
    assert leave_out((large,), large) == (small,)
    assert leave_out((single,), single) == leave_out((), single) == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lone_text(layout):
    bucket = lone_bucket(13, layout)
    assert (bucket.layout, bucket.size) == (layout, 16)
    assert fits(bucket, [13])


def test_the_counter_adds_runs_up():
    counter = PaddingCounter()
    counter.add(3, 8)
    counter.add(8, 8)
    assert (counter.total.real_tokens, counter.total.padded_tokens, counter.total.runs) == (11, 5, 2)
    assert counter.total.waste == 5 / 16


# --- the planner


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plans_keep_to_their_budget_and_take_every_text(layout):
    @given(
        st.integers(1, 300) | st.integers(500, 1200),
        st.integers(1, 12),
        st.integers(1, 2000),
        st.one_of(st.none(), st.lists(st.integers(1, 400), min_size=1, max_size=30)),
    )
    @settings(max_examples=150, deadline=None)
    def check(max_model_len, max_graphs, max_batch_tokens, lengths):
        budget = BucketBudget(max_model_len=max_model_len, max_graphs=max_graphs, max_batch_tokens=max_batch_tokens)
        histogram = None if lengths is None else count_lengths(lengths, max_model_len)
        buckets = plan_buckets(budget, layout, histogram)
        assert 1 <= len(buckets) <= max_graphs
        assert len(set(buckets)) == len(buckets)
        assert [bucket.size for bucket in buckets] == sorted((bucket.size for bucket in buckets), reverse=True)
        assert any(fits(bucket, [max_model_len]) for bucket in buckets)
        assert all(
            bucket.size <= max_batch_tokens
            or (bucket.batch_size == 1 if layout == "padded" else bucket.size <= round_length(max_model_len))
            for bucket in buckets
        )
        assert {bucket.layout for bucket in buckets} == {layout}

    check()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=7),
    st.integers(0, 6),
)
@settings(max_examples=200, deadline=None)
def test_edges_pad_least(rows, spare):
    """Against every set of edges there is."""
    rows = sorted({length: (length, count, graphs) for length, count, graphs in rows}.values())
    lengths, _, graphs = (list(column) for column in zip(*rows, strict=True))
    max_graphs = graphs[-1] + spare
    weights = np.array([[count, count * length] for length, count, _ in rows], dtype=np.int64)

    def padding(edges):
        return sum(
            count * (next(lengths[e] for e in edges if lengths[e] >= length) - length) for length, count, _ in rows
        )

    last = len(lengths) - 1
    sets = [
        (*chosen, last)
        for size in range(len(lengths))
        for chosen in combinations(range(last), size)
        if sum(graphs[edge] for edge in (*chosen, last)) <= max_graphs
    ]
    chosen = choose_edges(np.array(lengths), weights, graphs, max_graphs)
    assert tuple(chosen) in sets
    assert padding(chosen) == min(map(padding, sets))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_graphs_than_there_are_lengths(layout):
    plans = [plan_buckets(BucketBudget(max_model_len=40, max_graphs=most), layout) for most in (99, 10**15)]
    assert plans[0] == plans[1]


def test_a_plan_follows_the_texts():
    budget = BucketBudget(max_model_len=512, max_graphs=4, max_batch_tokens=4096)
    histogram = count_lengths([24] * 900 + [200] * 90 + [512] * 10, 512)
    assert {bucket.max_length for bucket in plan_buckets(budget, "padded", histogram)} == {24, 200, 512}
    assert plan_buckets(budget, "padded", histogram) != plan_buckets(budget, "padded")


def test_a_third_of_the_padded_buckets_is_for_few_texts():
    buckets = plan_buckets(BucketBudget(max_model_len=64, max_graphs=9, max_batch_tokens=512), "padded")
    small = [bucket for bucket in buckets if bucket.batch_size < 512 // bucket.max_length]
    assert (len(small), len(buckets)) == (3, 9)
    assert min(bucket.batch_size for bucket in buckets if bucket.max_length == 64) == 1


def test_ladders_and_histograms():
    assert batch_ladder(682) == (1, 2, 11, 86)
    assert batch_ladder(1) == ()
    assert count_lengths([1, 1, 9], 4).tolist() == [0, 2, 0, 0, 1]
    guess = guess_lengths(64)
    assert guess[0] == 0
    assert abs(guess[8:16].sum() / guess[16:32].sum() - 1) < 0.1


@pytest.mark.parametrize("name", ["max_model_len", "max_graphs", "max_batch_tokens"])
def test_budgets_of_nothing(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        BucketBudget(**({"max_model_len": 8} | {name: 0}))


def test_an_unknown_layout():
    with pytest.raises(InputError, match=r"layout must be one of \['packed', 'padded'\]"):
        plan_buckets(BucketBudget(max_model_len=8), "uniform")
