import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fake_batches import (
    DEADLY,
    FAILING,
    SICK,
    FakeModel,
    Recorder,
    expected_row,
    in_loop,
    make_run,
    make_slots,
    make_text,
    pend,
    until,
)

from poolgraph.errors import SessionError, TaskNotSupported
from poolgraph.serving import engine
from poolgraph.serving.engine import Engine
from poolgraph.serving.engine_errors import DeadlineExceeded, EngineStopped, QueueFull
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.scheduler import Rules
from poolgraph.serving.speed import Speed
from poolgraph.serving.urgency import NO_HURRY, Urgency


class Bench:
    """An engine over a fake model, ended with the test."""

    def __init__(self, *, runs=1, seconds=0.0, max_batch_tokens=512, layout="uniform", **settings):
        self.model, self.observer = FakeModel(seconds), Recorder()
        rules = Rules(slots=make_slots(runs=runs, max_batch_tokens=max_batch_tokens, layout=layout))
        settings = EngineSettings(**{"restart_delay": 0.05} | settings)
        self.engine = Engine("tiny", self.model, rules, settings, self.observer)

    async def __aenter__(self):
        self.engine.start()
        return self

    async def __aexit__(self, *_):
        self.model.gate.set()
        self.engine.stop(EngineStopped("the test is over"))
        self.engine.join(5)

    async def hold(self):
        """Let one batch be under way until the gate is set."""
        self.model.gate.clear()
        while self.model.entered.acquire(blocking=False):
            pass  # batches before it have entered, too
        held = self.submit(make_text(3, 99))
        await asyncio.to_thread(self.model.entered.acquire)
        return held

    def submit(self, *texts, urgency=NO_HURRY, deadline=None, family="sequence"):
        run = pend(make_run(*texts, family=family), urgency, deadline)
        self.engine.submit(run)
        return run


@in_loop
async def test_answers_come_in_the_order_of_the_texts():
    async with Bench(runs=2) as bench:
        texts = [make_text(length, first) for length, first in [(5, 1), (9, 2), (5, 3), (2, 4)] * 50]
        answers = await bench.submit(*texts).future
        np.testing.assert_array_equal(answers, np.stack([expected_row(text) for text in texts]))
        rows = await bench.submit(*texts[:3], family="token").future
        assert [row.shape for row in rows] == [(5, 2), (9, 2), (5, 2)]


@in_loop
async def test_requests_share_batches_and_families_do_not():
    async with Bench() as bench:
        await bench.hold()
        runs = [bench.submit(make_text(7, number)) for number in (1, 2)]
        runs.append(bench.submit(make_text(7, 3), family="token"))
        bench.model.gate.set()
        await asyncio.gather(*(run.future for run in runs))
        assert bench.model.batches == [[99], [1, 2], [3]]
        await until(lambda: bench.observer.of("ran")[1:2] == [(2, 14, 14)])


@in_loop
async def test_a_table_pads_nothing_and_tells_nothing_of_the_speed_of_graphs():
    async with Bench(layout="padded") as bench:
        await bench.submit(make_text(8), make_text(7), family="query").future
        await until(lambda: bench.observer.of("ran") == [(2, 15, 15)])
        assert bench.engine._speed.seconds_for(10**9, most=60) == 1
        await bench.submit(make_text(8), make_text(7)).future
        await until(lambda: bench.observer.of("ran")[1:] == [(2, 15, 16)])
        assert bench.engine._speed.seconds_for(10**9, most=60) == 60


@in_loop
async def test_nan_fails_its_own_request_alone():
    async with Bench() as bench:
        await bench.hold()
        well, sick = bench.submit(make_text(7, 1)), bench.submit(make_text(5, 4), make_text(7, SICK))
        other = bench.submit(make_text(7, 2))
        bench.model.gate.set()
        with pytest.raises(SessionError, match="text 1 holds NaN"):
            await sick.future
        for run in (well, other):
            assert np.isfinite(await run.future).all()
        assert bench.observer.of("failed") == [("nan",)]
        assert bench.engine.is_alive


@in_loop
async def test_a_failed_batch_fails_the_requests_in_it_and_lets_go_of_their_other_texts():
    async with Bench(max_batch_tokens=7) as bench:
        await bench.hold()
        failing = bench.submit(make_text(7, FAILING), *[make_text(7, 5)] * 20)
        well = bench.submit(make_text(7, 1))
        bench.model.gate.set()
        with pytest.raises(SessionError, match="failed"):
            await failing.future
        np.testing.assert_array_equal(await well.future, [expected_row(make_text(7, 1))])
        assert bench.model.batches == [[99], [FAILING], [1]]


@in_loop
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async with Bench(max_queue_tokens=100, seconds=0.05) as bench:
        await bench.submit(make_text(50)).future
        await until(lambda: bench.observer.of("ran"))
        await bench.hold()
        waiting = bench.submit(*[make_text(50)] * 60)
        started = time.perf_counter()
        with pytest.raises(QueueFull, match="3000 tokens wait, and 100 may") as caught:
            bench.submit(make_text(10))
        assert time.perf_counter() - started < 0.05
        # Fifty tokens took about 0.05 s, so that 2,910 of them take 3 s and a little.
        assert 2 <= caught.value.retry_after <= 5
        assert bench.observer.of("dropped") == [("full", 1)]
        bench.model.gate.set()
        assert len(await waiting.future) == 60
        assert len(await bench.submit(make_text(10)).future) == 1


@in_loop
async def test_an_engine_that_hangs_is_not_alive_until_it_goes_on():
    async with Bench(runs=2, stuck_seconds=0.05) as bench:
        held = await bench.hold()
        await until(lambda: not bench.engine.is_alive)
        with pytest.raises(EngineStopped, match="takes no work now"):
            bench.submit(make_text(3))
        bench.model.gate.set()
        await held.future
        assert bench.engine.is_alive
        assert len(await bench.submit(make_text(3)).future) == 1


@in_loop
async def test_a_thread_that_hangs_is_seen_while_others_start_batches(monkeypatch):
    later = 0.0
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + later))
    async with Bench(runs=3, stuck_seconds=1000) as bench:
        bench.model.gate.clear()
        hanging = bench.submit(make_text(3), make_text(5))
        for _ in range(2):
            await asyncio.to_thread(bench.model.entered.acquire)
        later = 600.0
        started = bench.submit(make_text(4))
        await asyncio.to_thread(bench.model.entered.acquire)
        assert bench.engine.is_alive
        later = 1200.0
        assert not bench.engine.is_alive
        bench.model.gate.set()
        await asyncio.gather(hanging.future, started.future)


@in_loop
async def test_as_many_tokens_as_may_wait_are_a_full_queue():
    async with Bench(max_queue_tokens=50) as bench:
        await bench.hold()
        waiting = bench.submit(make_text(30)), bench.submit(make_text(20))
        with pytest.raises(QueueFull, match="50 tokens wait, and 50 may"):
            bench.submit(make_text(1))
        bench.model.gate.set()
        await asyncio.gather(*(run.future for run in waiting))


def test_speed():
    speed = Speed(2)
    assert speed.seconds_for(1000, most=60) == 1
    speed.add(100, 0.5)
    assert [speed.seconds_for(number, most=60) for number in (0, 400, 1000, 10**9)] == [1, 1, 3, 60]
    for _ in range(50):
        speed.add(100, 0.5)
    assert speed.seconds_for(1000, most=60) == 3
    for _ in range(50):
        speed.add(100, 0.05)
    assert speed.seconds_for(10_000, most=60) == 3


@in_loop
async def test_expired_texts_never_run():
    async with Bench() as bench:
        await bench.hold()
        late = bench.submit(make_text(7, 8), urgency=Urgency(timeout=0.01), deadline=time.monotonic() + 0.01)
        well = bench.submit(make_text(6, 1))
        await asyncio.sleep(0.03)
        bench.model.gate.set()
        with pytest.raises(DeadlineExceeded, match=r"within its 0\.01 s"):
            await late.future
        await well.future
        assert [8] not in bench.model.batches
        assert bench.observer.of("dropped") == [("deadline", 1)]


@in_loop
async def test_dropped_texts_never_run_and_free_the_queue():
    async with Bench(max_queue_tokens=100) as bench:
        await bench.hold()
        gone = bench.submit(*[make_text(50, 8)] * 3)
        assert bench.engine.drop(gone, "disconnected")
        assert bench.observer.last_queue == (0, 0)
        well = bench.submit(make_text(6, 1))
        assert not bench.engine.drop(gone, "disconnected")
        bench.model.gate.set()
        await well.future
        assert bench.model.batches == [[99], [1]]


@in_loop
async def test_a_model_thread_that_dies_fails_what_waits_and_comes_back():
    async with Bench(restart_delay=0.1) as bench:
        await bench.hold()
        deadly = bench.submit(make_text(7, DEADLY))
        waiting = [bench.submit(make_text(length, 1)) for length in (8, 9, 10)]
        bench.model.gate.set()
        for run in (deadly, *waiting):
            with pytest.raises(EngineStopped, match="died of ZeroDivisionError") as caught:
                await run.future
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert not bench.engine.is_alive
        with pytest.raises(EngineStopped, match="takes no work now"):
            bench.submit(make_text(3))
        await until(lambda: bench.engine.is_alive)
        assert bench.observer.of("failed") == [("engine",)]
        assert bench.observer.of("restarted") == [()]
        assert len(await bench.submit(make_text(7, 1)).future) == 1


@in_loop
async def test_each_death_in_a_row_doubles_the_pause():
    async with Bench(restart_delay=0.02) as bench:
        pauses = []
        for _ in range(3):
            run, started = bench.submit(make_text(7, DEADLY)), time.perf_counter()
            with pytest.raises(EngineStopped):
                await run.future
            await until(lambda: bench.engine.is_alive and len(bench.observer.of("restarted")) == len(pauses) + 1)
            pauses.append(time.perf_counter() - started)
        assert pauses[2] > 2 * pauses[0]
        assert pauses[2] > 0.08


@in_loop
async def test_an_answer_makes_the_next_pause_the_first_again(monkeypatch):
    async with Bench(restart_delay=0.01) as bench:
        pauses, real = [], bench.engine._stopping.wait
        monkeypatch.setattr(bench.engine._stopping, "wait", lambda seconds: pauses.append(seconds) or real(seconds))
        for first in (DEADLY, DEADLY, 1, DEADLY):
            await until(lambda: bench.engine.is_alive)
            await asyncio.gather(bench.submit(make_text(7, first)).future, return_exceptions=True)
        await until(lambda: len(pauses) == 3)
        assert pauses == [0.01, 0.02, 0.01]


@in_loop
async def test_who_is_told_of_a_death_finds_the_engine_dead(monkeypatch):
    async with Bench() as bench:
        seen, loop = [], asyncio.get_running_loop()
        real = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *args: seen.append(bench.engine.is_alive) or real(*args)
        )
        with pytest.raises(EngineStopped):
            await bench.submit(make_text(7, DEADLY)).future
        assert seen == [False]


@in_loop
async def test_the_end_fails_what_waits_and_lets_what_runs_end():
    async with Bench() as bench:
        held = await bench.hold()
        waiting = bench.submit(make_text(5))
        bench.engine.stop(EngineStopped("closing"))
        with pytest.raises(EngineStopped, match="closing"):
            await waiting.future
        bench.model.gate.set()
        np.testing.assert_array_equal(await held.future, [expected_row(make_text(3, 99))])
        bench.engine.join(5)
        assert not bench.engine.is_alive


@in_loop
async def test_one_wake_up_of_the_loop_a_batch(monkeypatch):
    async with Bench() as bench:
        await bench.hold()
        calls, loop = [], asyncio.get_running_loop()
        real = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: calls.append(args[0]) or real(*args))
        runs = [bench.submit(make_text(5)) for _ in range(20)]
        bench.model.gate.set()
        await asyncio.gather(*(run.future for run in runs))
        assert bench.model.batches[1:] == [[1] * 20]
        assert len(calls) == 2


@in_loop
async def test_a_lone_text_has_all_threads_to_itself(monkeypatch):
    monkeypatch.setattr(engine, "COMPANY_SECONDS", 0.5)  # longer than a busy machine keeps the two apart
    async with Bench(runs=2) as bench:
        await bench.hold()
        later = bench.submit(make_text(5))
        await asyncio.sleep(0.02)
        assert bench.model.batches == [[99]]
        bench.model.gate.set()
        await later.future
        assert bench.model.threads == [2, 1]  # the two met
        await asyncio.sleep(0.5)
        for _ in range(2):  # each in its turn
            await bench.submit(make_text(5)).future
        assert bench.model.threads == [2, 1, 2, 2]


@in_loop
async def test_whatever_dies_nobody_waits_for_ever(monkeypatch):
    async with Bench() as bench:
        real = bench.observer.queue
        monkeypatch.setattr(bench.observer, "queue", lambda *_: None)
        held = await bench.hold()
        waiting = bench.submit(make_text(5))
        monkeypatch.setattr(bench.observer, "ran", lambda *_: 1 / 0)
        bench.model.gate.set()
        np.testing.assert_array_equal(await held.future, [expected_row(make_text(3, 99))])
        with pytest.raises(EngineStopped, match="died of ZeroDivisionError"):
            await waiting.future
        monkeypatch.setattr(bench.observer, "queue", real)
        monkeypatch.setattr(bench.observer, "ran", lambda *_: None)
        await until(lambda: bench.engine.is_alive)
        assert len(await bench.submit(make_text(5)).future) == 1


@in_loop
async def test_a_task_that_the_variant_lacks_fails_alone():
    async with Bench() as bench:
        real = bench.model.run_batch

        def run_batch(texts, family, *, threads):
            if family == "token":
                raise TaskNotSupported("variant 'cpu_fp32' has no token graph")
            return real(texts, family, threads=threads)

        bench.model.run_batch = run_batch
        with pytest.raises(TaskNotSupported):
            await bench.submit(make_text(5), family="token").future
        assert bench.observer.of("failed") == [("task",)]
        assert len(await bench.submit(make_text(5)).future) == 1
