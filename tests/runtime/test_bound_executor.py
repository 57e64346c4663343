"""Buckets on bound buffers: every text's own answer, from any batch and thread; the same code on both devices."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from bound_executors import BUCKETS, assert_answers
from bound_graphs import SIZE, random_texts, reference, reference_rows
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st

from poolgraph.errors import SessionError
from poolgraph.runtime import bound_executor, bound_slot
from poolgraph.runtime.bound_slot import NO_GRAPH, BoundSlot
from poolgraph.runtime.bucket_planner import BucketBudget, plan_buckets
from poolgraph.runtime.buckets import Bucket, packed_bucket

LAYOUTS = ("padded", "packed")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "lengths",
    [[1], [32], [8, 9], [32] * 9, [1] * 70, list(range(1, 33)), [40, 3, 33]],
    ids=["one token", "the longest", "an edge", "many", "short", "ragged", "beyond all buckets"],
)
def test_answers_are_each_texts_own(make_executor, device, layout, lengths):
    assert_answers(make_executor(layout, device), random_texts(lengths))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buffers_are_used_again_without_a_trace(make_executor, device, layout):
    executor = make_executor(layout, device)
    for seed, lengths in enumerate([[32, 31, 30, 29], [5], [1, 1], [20, 7, 3], [32]]):
        assert_answers(executor, random_texts(lengths, seed))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planned_buckets_serve_texts_of_all_lengths(make_executor, layout):
    buckets = plan_buckets(BucketBudget(max_model_len=32, max_graphs=6, max_batch_tokens=128), layout)
    executor = make_executor(layout, ("CPUExecutionProvider", "cpu"), buckets)

    @given(st.lists(st.integers(1, 32), min_size=1, max_size=40), st.integers(0, 9))
    @settings(max_examples=25, deadline=None)
    def check(lengths, seed):
        assert_answers(executor, random_texts(lengths, seed))

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_and_padded_tokens_are_counted(make_executor, device, layout):
    executor = make_executor(layout, device)
    assert (executor.padding.real_tokens, executor.padding.runs) == (0, 0)
    executor.warm_up("sequence")
    assert executor.padding.runs == 0
    executor.run_sequence(random_texts([30]))
    assert (executor.padding.real_tokens, executor.padding.padded_tokens, executor.padding.runs) == (30, 2, 1)
    executor.run_token(random_texts([32, 32, 32, 31]))
    assert (executor.padding.real_tokens, executor.padding.padded_tokens, executor.padding.runs) == (157, 3, 2)


def test_warm_up_runs_every_bucket_and_tells_of_each(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    ran, told = [], []
    warm_up = BoundSlot.warm_up
    monkeypatch.setattr(
        BoundSlot, "warm_up", lambda slot: ran.append((slot.bucket, threading.get_ident())) or warm_up(slot)
    )
    executor.warm_up("sequence", lambda done, total: told.append((done, total)))
    assert [bucket for bucket, _ in ran] == [BUCKETS["padded"][0]] * 2 + [BUCKETS["padded"][1]] * 2 + [
        BUCKETS["padded"][2]
    ]
    assert len({thread for _, thread in ran}) == 1
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_of_many_threads_meet_in_one(make_executor, monkeypatch, device, layout):
    executor = make_executor(layout, device)
    runners, overlaps, busy = set(), [], threading.Lock()
    run = BoundSlot.run

    def watched(slot):
        runners.add(threading.get_ident())
        overlaps.append(not busy.acquire(blocking=False))
        try:
            run(slot)
        finally:
            busy.release()

    monkeypatch.setattr(BoundSlot, "run", watched)
    failures = []

    def call(seed):
        try:
            for step in range(3):
                assert_answers(
                    executor, random_texts([1 + (seed * 7 + step * 5 + i * 3) % 32 for i in range(30)], seed)
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(runners) == 1
    assert not any(overlaps)
    assert runners != {threading.get_ident()}


def test_the_next_batch_is_staged_while_one_runs(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    executor.warm_up("sequence")
    staged = threading.Semaphore(0)
    stage, run = BoundSlot.stage, BoundSlot.run
    waits = []

    def watched_stage(slot, texts):
        stage(slot, texts)
        staged.release()

    def watched_run(slot):
        if not waits:
            staged.acquire()
            waits.append(staged.acquire(timeout=10))  # the second batch, before the first run is over
        run(slot)

    monkeypatch.setattr(BoundSlot, "stage", watched_stage)
    monkeypatch.setattr(BoundSlot, "run", watched_run)
    assert_answers(executor, random_texts([32] * 8))
    assert waits == [True]


# --- graphs


def test_planned_buckets_have_graphs_and_others_have_none(make_executor, monkeypatch):
    seen = {}
    make = BoundSlot.__post_init__
    monkeypatch.setattr(
        BoundSlot, "__post_init__", lambda slot: seen.setdefault(slot.graph_id, slot.bucket) and make(slot)
    )
    released = []
    monkeypatch.setattr(BoundSlot, "release_graph", lambda slot: released.append(slot.graph_id))
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"), uses_graphs=True)
    executor.warm_up("sequence")
    executor.run_sequence(random_texts([40, 48, 56, 64, 72, 80, 88, 96]))
    assert sorted(seen) == [NO_GRAPH, 1, 2, 3, 4, 5]
    assert seen[NO_GRAPH] not in executor.buckets
    assert all(seen[graph_id] in executor.buckets for graph_id in range(1, 6))
    pool = executor._pools["sequence"]
    assert pool.num_slots <= pool.max_slots == 5 + 4
    assert released == []


def test_the_first_run_of_a_graph_is_alone_and_others_are_not(make_executor, monkeypatch):
    gates = []

    class Gate:
        def __getattr__(self, name):
            from contextlib import nullcontext

            gates.append(name)
            return nullcontext

    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"), uses_graphs=True)
    executor.warm_up("sequence")
    monkeypatch.setattr(bound_slot, "GATE", Gate())
    executor.run_sequence(random_texts([3]))
    assert "exclusive" not in gates
    executor.run_token(random_texts([3]))
    assert gates.count("exclusive") == 1


# --- the rest


def test_answers_that_are_not_finite_name_the_text(make_executor):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    texts = random_texts([3, 4, 5])
    # No token takes part in the mean.
    texts[1] = replace(texts[1], prompt_length=4)
    with pytest.raises(SessionError, match="the answer for text 8 holds NaN"):
        executor.run_sequence(texts, first_index=7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_of_a_scheduler_have_the_same_answers(make_executor, device, layout):
    executor = make_executor(layout, device)
    slots = executor.plan_slots()
    assert (slots.threads, slots.lone_threads, slots.layout, slots.in_turn) == (1, 1, layout, True)
    assert slots.max_batch_tokens == max(bucket.size for bucket in BUCKETS[layout])
    texts = random_texts([3, 30, 5])
    texts[1] = replace(texts[1], prompt_length=30)  # no token takes part in its mean
    answer = executor.run_batch(texts, "sequence", threads=1)
    assert answer.finite.tolist() == [True, False, True]
    np.testing.assert_allclose(answer.rows[::2], np.stack([reference(text) for text in texts[::2]]), atol=1e-5)
    tokens = executor.run_batch(texts, "token", threads=1)
    assert tokens.finite.all()
    for rows, text in zip(tokens.rows, texts, strict=True):
        np.testing.assert_allclose(rows, reference_rows(text), atol=1e-5)


def test_progress_counts_every_text_once(make_executor):
    told = []
    make_executor("packed", ("CPUExecutionProvider", "cpu")).run_sequence(
        random_texts([5] * 100), on_progress=told.append
    )
    assert sum(told) == 100


def test_no_texts(make_executor):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    assert executor.run_sequence([]).shape == (0, SIZE)
    assert executor.run_token([]) == []


def test_a_closed_executor_refuses(make_executor):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    executor.close()
    with pytest.raises(SessionError, match="the model is closed"):
        executor.run_sequence(random_texts([3]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_warming_up_runs_no_text_that_the_model_would_refuse(make_executor, monkeypatch, layout, device):
    """A bucket's length is rounded up; the tables of positions are not."""
    staged = []
    stage = BoundSlot.stage
    monkeypatch.setattr(BoundSlot, "stage", lambda slot, texts: (staged.extend(texts), stage(slot, texts)))
    executor = make_executor(layout, device, max_model_len=29)
    executor.warm_up("sequence")
    assert max(text.num_tokens for text in staged) == 29


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("run_cost", "runs"), [(64, 2), (1024, 1)])
def test_batches_are_cut_by_what_warming_up_measured(make_executor, monkeypatch, device, run_cost, runs):
    """A text of 32 tokens and nine of 8: two runs compute 160 tokens, one computes 512."""
    measured = []
    monkeypatch.setattr(bound_executor, "fit_run_cost", lambda seconds: measured.append(seconds) or run_cost)
    sizes = [(32, 16), (8, 16), (32, 1)]
    buckets = tuple(Bucket(max_length=length, batch_size=size) for length, size in sizes)
    executor = make_executor("padded", device, buckets)
    executor.warm_up("sequence")
    assert set(measured[0]) == {512, 128, 32}
    assert min(measured[0].values()) > 0
    executor.run_sequence(random_texts([32] + [8] * 9))
    assert executor.padding.runs == runs
    executor.run_token(random_texts([32] + [8] * 9))
    assert executor.padding.runs == 2 * runs, "a graph that was not warmed up costs what the other one does"


def test_what_is_measured_is_a_run_after_the_first(make_executor, monkeypatch):
    run, runs, measured = BoundSlot.run, [], []

    def slow(slot):
        runs.append(slot)
        time.sleep(0.02 if runs.count(slot) > 1 else 0.2)
        run(slot)

    monkeypatch.setattr(BoundSlot, "run", slow)
    monkeypatch.setattr(bound_executor, "fit_run_cost", lambda seconds: measured.append(seconds) or 64)
    make_executor("padded", ("CPUExecutionProvider", "cpu")).warm_up("sequence")
    assert all(0.02 <= seconds < 0.2 for seconds in measured[0].values())


def test_what_fills_up_a_text_beyond_all_buckets_is_no_longer_than_the_models_texts(make_executor, monkeypatch):
    """The bucket of 248 tokens that the text of 241 needs takes the text of 3 too, at less than the planned one."""
    made = []
    make = BoundSlot.__post_init__
    monkeypatch.setattr(BoundSlot, "__post_init__", lambda slot: made.append(slot.bucket) or make(slot))
    buckets = (packed_bucket(4096, 32, 16),)
    executor = make_executor("packed", ("CPUExecutionProvider", "cpu"), buckets, max_model_len=242)
    texts = random_texts([241, 3])
    np.testing.assert_allclose(executor.run_sequence(texts), np.stack([reference(text) for text in texts]), atol=1e-5)
    assert executor.padding.padded_tokens < 300
    assert [bucket.max_length for bucket in made] == [242]
    assert_answers(executor, random_texts([243, 300]))
