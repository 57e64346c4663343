"""The gate: captures are alone, all else shares, and a capture that waits is not passed by."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import pytest
from bound_graphs import random_texts

from poolgraph.runtime import session
from poolgraph.runtime.capture_gate import GATE, CaptureGate


def start(run):
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_sharing_does_not_wait():
    gate = CaptureGate()
    inside = threading.Barrier(2, timeout=10)

    def share():
        with gate.shared():
            inside.wait()

    threads = [start(share), start(share)]
    for thread in threads:
        thread.join()
    assert not inside.broken


def test_a_capture_waits_for_all_and_all_wait_for_it():
    gate = CaptureGate()
    order, entered, leave, asked = [], threading.Event(), threading.Event(), threading.Event()

    def share():
        with gate.shared():
            entered.set()
            leave.wait(10)
            order.append("shared")

    def capture():
        asked.set()
        with gate.exclusive():
            order.append("capture")

    def late():
        with gate.shared():
            order.append("late")

    threads = [start(share)]
    entered.wait(10)
    threads.append(start(capture))
    asked.wait(10)
    while gate._num_waiting == 0:
        pass
    threads.append(start(late))
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["shared", "capture", "late"]


def test_an_error_inside_opens_the_gate():
    gate = CaptureGate()
    for block in (gate.exclusive, gate.shared):
        try:
            with block():
                raise ValueError
        except ValueError:
            pass
    with gate.exclusive():
        pass


def test_a_provider_is_not_tried_while_a_model_captures(monkeypatch):
    monkeypatch.setattr(session, "try_provider", lambda *_: None)
    with GATE.exclusive():
        thread = start(lambda: session.provider_loads.__wrapped__("CUDAExecutionProvider"))
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("part", ["a graph", "the sessions"])
def test_what_is_let_go_of_waits_for_another_models_capture(make_executor, monkeypatch, part):
    executor = make_executor("padded", ("CPUExecutionProvider", "cpu"), uses_graphs=True)
    executor.run_sequence(random_texts([3]))
    [slot] = executor._pools["sequence"]._idle
    monkeypatch.setattr(slot, "session", SimpleNamespace(release_captured_graph=lambda graph_id: None))
    with GATE.exclusive():
        thread = start(slot.release_graph if part == "a graph" else executor.sessions.close)
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_no_garbage_is_collected_while_a_graph_is_captured():
    gate = CaptureGate()
    with gate.exclusive():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with gate.exclusive():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
