"""A client that hangs up: its request is cancelled, nobody else's is."""

from __future__ import annotations

import asyncio

import pytest

from poolgraph.serving.asgi_types import ENDS_WITH_CLIENT


async def send_request(site, receive, sent, *, body=b'{"input": "w1"}', state=None):
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "state": state or {},
    }

    async def send(message):
        sent.append(message)

    await site.app(scope, receive, send)


def play(messages, *, last_after=0.0):
    """A ``receive`` that gives messages, the last of them after a while."""
    left = list(messages)

    async def receive():
        message = left.pop(0)
        if not left:
            await asyncio.sleep(last_after)
        return message

    return receive


WHOLE = {"type": "http.request", "body": b'{"input": "w1"}', "more_body": False}
GONE = {"type": "http.disconnect"}


def test_a_request_whose_client_hangs_up_is_cancelled(make_site):
    site = make_site()
    site.model.delay = 30.0
    sent = []

    async def main():
        await asyncio.wait_for(send_request(site, play([WHOLE, GONE], last_after=0.1), sent), 5)
        task = asyncio.current_task()
        assert task.cancelling() == 0

    asyncio.run(main())
    assert sent == []
    assert site.model.num_cancelled == 1


def test_a_client_that_waits_gets_its_answer(make_site):
    site = make_site()
    site.model.delay = 0.2
    sent = []
    asyncio.run(send_request(site, play([WHOLE, GONE], last_after=30.0), sent))
    assert sent[0]["status"] == 200
    assert site.model.num_cancelled == 0


def test_only_the_request_of_that_client_is_cancelled(make_site):
    site = make_site()
    site.model.delay = 0.4
    gone, stays = [], []

    async def main():
        await asyncio.gather(
            send_request(site, play([WHOLE, GONE], last_after=0.1), gone),
            send_request(site, play([WHOLE, GONE], last_after=30.0), stays),
        )

    asyncio.run(main())
    assert gone == []
    assert stays[0]["status"] == 200
    assert site.model.num_cancelled == 1


def test_a_client_that_hangs_up_in_the_middle_of_its_body(make_site):
    site = make_site()
    sent = []
    part = {"type": "http.request", "body": b'{"inp', "more_body": True}
    asyncio.run(send_request(site, play([part, GONE]), sent))
    assert sent == []
    assert site.model.num_calls == 0


def test_a_body_in_parts(make_site):
    site = make_site()
    sent = []
    parts = [
        {"type": "http.request", "body": WHOLE["body"][start : start + 4], "more_body": True}
        for start in range(0, 16, 4)
    ]
    end = {"type": "http.request", "body": b"", "more_body": False}
    asyncio.run(send_request(site, play([*parts, end, GONE], last_after=30.0), sent))
    assert sent[0]["status"] == 200


def test_a_cancelled_server_cancels_its_requests(make_site):
    site = make_site()
    site.model.delay = 30.0

    async def main():
        async with asyncio.timeout(0.2):
            await send_request(site, play([WHOLE, GONE], last_after=30.0), [])

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert site.model.num_cancelled == 1


def test_lifespan(make_site):
    site = make_site()
    sent = []

    async def send(message):
        sent.append(message["type"])

    events = play([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    asyncio.run(site.app({"type": "lifespan"}, events, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_server_that_cancels_requests_itself_is_not_asked_again(make_site):
    site = make_site()
    site.model.delay = 0.2
    sent, asked = [], []

    async def receive():
        asked.append(WHOLE)
        return WHOLE if len(asked) == 1 else await asyncio.sleep(30, GONE)

    asyncio.run(send_request(site, receive, sent, state={ENDS_WITH_CLIENT: True}))
    assert sent[0]["status"] == 200
    assert len(asked) == 1
