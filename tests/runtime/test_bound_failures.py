"""Buckets on bound buffers where something fails: no memory, a sick device, a model that is closed meanwhile."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from bound_executors import BUCKETS, assert_answers, fail_on
from bound_graphs import SIZE, random_texts, reference

from poolgraph.errors import SessionError
from poolgraph.runtime import bound_slot
from poolgraph.runtime.bound_slot import BoundSlot
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.out_of_memory import is_out_of_memory

LAYOUTS = ("padded", "packed")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_that_no_memory_is_left_for_is_split(make_executor, monkeypatch, layout):
    executor = make_executor(layout, ("CPUExecutionProvider", "cpu"))
    tried = []
    fail_on(monkeypatch, lambda bucket: tried.append(bucket) or bucket.size > 40)
    texts = random_texts([32, 20, 17, 16, 9, 9, 9, 8, 2, 1])
    with pytest.warns(UserWarning, match="no memory is left for the bucket"):
        found = executor.run_sequence(texts)
    np.testing.assert_allclose(found, np.stack([reference(text) for text in texts]), atol=1e-5)
    failed = {bucket for bucket in tried if bucket.size > 40} & set(executor.buckets)
    tried.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor.run_sequence(texts)
    assert failed
    assert not failed & set(tried), "they are not tried again"


def test_a_warm_up_without_memory_leaves_the_bucket_out(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    fail_on(monkeypatch, lambda bucket: bucket == BUCKETS["padded"][0], "CUDA failure 2: out of memory")
    with pytest.warns(UserWarning, match="no memory is left for the bucket 4x32"):
        executor.warm_up("sequence")
    monkeypatch.undo()
    assert executor.run_sequence(random_texts([32] * 5)).shape == (5, SIZE)
    assert executor.padding.runs == 5


def test_without_any_bucket_texts_have_their_own(make_executor, monkeypatch):
    executor = make_executor("packed", ("CPUExecutionProvider", "cpu"))
    fail_on(monkeypatch, lambda bucket: bucket in BUCKETS["packed"])
    with pytest.warns(UserWarning, match="no memory is left for the bucket"):
        executor.warm_up("sequence")
    assert_answers(executor, random_texts([3, 30, 5, 5]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_the_place_of_the_only_bucket_is_one_of_half_its_size(make_executor, monkeypatch, layout):
    only = BUCKETS[layout][0]
    executor = make_executor(layout, ("CPUExecutionProvider", "cpu"), (only,))
    fail_on(monkeypatch, lambda bucket: bucket == only)
    with pytest.warns(UserWarning, match="Smaller ones are used instead"):
        executor.warm_up("sequence")
    executor.run_sequence(random_texts([32] * 8))
    assert executor.padding.runs == 4
    assert_answers(executor, random_texts([3, 30, 5, 5]))


def test_a_bucket_that_no_memory_is_left_for_keeps_no_idle_slot(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    executor.warm_up("sequence")
    large = BUCKETS["padded"][0]
    fail_on(monkeypatch, lambda bucket: bucket == large)
    with pytest.warns(UserWarning, match="no memory is left for the bucket 4x32"):
        executor.run_sequence(random_texts([32] * 4))
    assert large not in {slot.bucket for slot in executor._pools["sequence"]._idle}


def test_no_memory_of_the_processors_for_a_bucket(make_executor, monkeypatch):
    large = BUCKETS["padded"][0]
    build = bound_slot.build_arrays

    def refuse(graph, bucket):
        if bucket == large:
            np.zeros((2**56,), dtype=np.int64)
        return build(graph, bucket)

    monkeypatch.setattr(bound_slot, "build_arrays", refuse)
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    with pytest.warns(
        UserWarning, match=r"no memory is left for the bucket 4x32 \(making buffers .*Unable to allocate"
    ):
        executor.warm_up("sequence")
    assert_answers(executor, random_texts([32] * 5))


def test_no_memory_for_a_single_text_is_an_error_with_a_cure(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    fail_on(monkeypatch, lambda bucket: True)
    with (
        pytest.warns(UserWarning, match="no memory"),
        pytest.raises(SessionError, match=r"no memory is left for a text of 9 tokens .*gpu_mem_limit"),
    ):
        executor.run_sequence(random_texts([9]))
    monkeypatch.undo()
    assert_answers(executor, random_texts([40]))


def test_other_failures_end_the_call_and_leave_the_executor_usable(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    fail_on(monkeypatch, lambda bucket: bucket.max_length == 8, "CUDA failure 700: an illegal memory access")
    with pytest.raises(SessionError, match="illegal memory access"):
        executor.run_sequence(random_texts([32] * 9 + [3] * 40))
    monkeypatch.undo()
    assert_answers(executor, random_texts([32, 3, 3]))


def test_a_slot_that_failed_behind_another_is_not_used_again(make_executor, monkeypatch):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"))
    fail_on(monkeypatch, lambda bucket: True, "CUDA failure 700: an illegal memory access")
    with pytest.raises(SessionError, match="illegal memory access"):
        executor.run_sequence(random_texts([32] * 8))
    assert executor._pools["sequence"].num_slots == 0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("running x failed: [ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 12", True),
        ("Available memory of 1 is smaller than requested bytes of 2", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDNN failure: CUDNN_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_messages_of_failed_allocations(message, expected):
    assert is_out_of_memory(SessionError(message)) is expected


# --- slots of calls that end badly


def test_an_error_stays_what_it_is_where_the_graph_cannot_be_let_go_of(make_executor, monkeypatch):
    """A device that is sick refuses both; the slot is counted out, so that nobody waits for it."""
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"), uses_graphs=True)
    executor.warm_up("sequence")

    def refuse(slot):
        raise RuntimeError("cannot release")

    monkeypatch.setattr(BoundSlot, "release_graph", refuse)
    fail_on(monkeypatch, lambda bucket: True, "CUDA failure 700: an illegal memory access")
    for _ in range(3):
        with pytest.raises(SessionError, match="illegal memory access"):
            executor.run_sequence(random_texts([32]))
    assert executor._pools["sequence"].num_slots <= 4


def test_calls_that_wait_for_a_slot_are_refused_when_the_model_is_closed(make_executor):
    buckets = (Bucket(max_length=32, batch_size=4), Bucket(max_length=8, batch_size=1))
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"), buckets, uses_graphs=True)
    executor.warm_up("sequence")
    refusals = []

    def call():
        try:
            while True:
                executor.run_sequence(random_texts([3]))
        except SessionError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    executor.close()
    for thread in threads:
        thread.join(20)
    assert refusals == ["the model is closed; load it again"] * 6
