"""How long a request may take: told, cancelled, cut off, and one timer for all."""

import asyncio
import time

import pytest
from fake_app import FakeApp, answer, call, run

from poolgraph.serving.middleware_drain import Drain
from poolgraph.serving.middleware_watch import CLIENT_LEFT, watch_requests


def watch(app, *, timeout_s=5.0, on_end=lambda access: None):
    return watch_requests(app, timeout_s=timeout_s, drain=Drain(), on_end=on_end)


def test_a_request_that_takes_too_long_is_cancelled_and_told():
    app = FakeApp()
    refused = run(call(watch(app, timeout_s=0.02), "/sleep?5"))
    assert (refused.status, refused.error["type"]) == (504, "DeadlineExceeded")
    assert app.cancelled == 1


def test_a_timeout_of_the_application_is_not_taken_for_ours():
    async def failing(scope, receive, send):
        raise TimeoutError

    assert run(call(watch(failing))).status == 500


def test_an_answer_that_has_begun_is_cut_off_when_it_takes_too_long(caplog):
    ended = []

    async def slow(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(5)

    with pytest.raises(TimeoutError):
        run(call(watch(slow, timeout_s=0.02, on_end=ended.append)))
    assert [access.status for access in ended] == [200]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_request_that_takes_too_long_and_whose_client_leaves_is_told_nothing():
    async def scenario():
        ended = []
        state = {}
        task = asyncio.create_task(call(watch(FakeApp(), timeout_s=0.02, on_end=ended.append), "/sleep?5", state=state))
        await asyncio.sleep(0.01)
        time.sleep(0.02)  # the limit passes, and the client leaves, while the loop is busy
        state["is_disconnected"] = True
        asyncio.get_running_loop().call_later(0, task.cancel)
        with pytest.raises(IndexError):  # nothing was sent
            await task
        assert [access.status for access in ended] == [CLIENT_LEFT]

    run(scenario())


def test_each_request_has_its_own_limit_of_time():
    async def scenario():
        app = watch(FakeApp(), timeout_s=0.1)
        tasks = []
        for seconds in ("5", "0.01", "5", "0.07"):
            tasks.append(asyncio.create_task(call(app, f"/sleep?{seconds}")))
            await asyncio.sleep(0.02)
        assert [(await task).status for task in tasks] == [504, 200, 504, 200]
        await asyncio.sleep(0.1)
        assert (await call(app, "/sleep?0.01")).status == 200  # after a while with none
        assert (await call(app, "/sleep?5")).status == 504

    run(scenario())


def test_a_client_that_leaves_while_it_is_told_so_is_no_failure(caplog):
    async def scenario():
        ended = []
        scope = {"type": "http", "method": "GET", "path": "/sleep", "query_string": b"5", "headers": [], "state": {}}

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        app = watch(FakeApp(), timeout_s=0.02, on_end=ended.append)
        task = asyncio.create_task(app(scope, receive, lambda message: asyncio.sleep(5)))
        await asyncio.sleep(0.05)
        scope["state"]["is_disconnected"] = True
        task.cancel()
        await task
        assert [access.status for access in ended] == [504]

    run(scenario())
    assert not caplog.records


def test_a_limit_that_the_application_passes_over_leaves_the_task_as_it_was():
    async def stubborn(scope, receive, send):
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await answer(send, 200, b"all the same")

    async def scenario():
        found = await call(watch(stubborn, timeout_s=0.02))
        return found.status, asyncio.current_task().cancelling()

    assert run(scenario()) == (200, 0)


def test_a_limit_works_in_the_loop_after_one_that_was_closed():
    app = watch(FakeApp(), timeout_s=0.02)
    loop = asyncio.new_event_loop()
    pending = loop.create_task(call(app, "/sleep?5"))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert run(call(app, "/sleep?5")).status == 504
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(pending)
    loop.close()
