"""Middleware: each request named, timed and counted, and ended when it takes too long; a failure becomes a 500."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

from poolgraph.serving.access_log import Access
from poolgraph.serving.asgi_types import ANSWER_HEADERS, ASGIApp, Header, Message, Receive, Scope, Send, find_header
from poolgraph.serving.logs import OWN_LOGGER
from poolgraph.serving.middleware_drain import Drain
from poolgraph.serving.refusals import TIMED_OUT, UNFORESEEN, refuse
from poolgraph.serving.request_ids import HEADER, choose_request_id
from poolgraph.serving.time_limit import TimeLimit

CLIENT_LEFT: Final = 499
"""The status under which a request is counted whose client went away, as in nginx's logs; nobody is sent it."""

_LOGGER: Final = logging.getLogger(OWN_LOGGER)
_MESSAGE: Final = "The server failed to answer this request. Its logs say more, under the request's id."
_TOO_LATE: Final = "The request took longer than {:g} seconds, the server's limit. Send fewer texts a request."


def watch_requests(app: ASGIApp, *, timeout_s: float, drain: Drain, on_end: Callable[[Access], None]) -> ASGIApp:
    """Do what every request needs, whatever becomes of it; one coroutine, for each costs every request its time.

    A request gets ``scope["state"]["request_id"]``, and its answer the header X-Request-Id and those that any other
    middleware puts into ``scope["state"][ANSWER_HEADERS]``. An exception that the application lets out is answered
    with 500. A request that takes too long is cancelled, so that its texts leave the queue, and answered with 504; an
    answer that has begun is cut off: its client sees the connection end early.

    Args:
        app: The application.
        timeout_s: How long a request may take.
        drain: Where requests under way are counted, and what says that connections end with their answers.
        on_end: Called after each request.
    """
    limit = TimeLimit(timeout_s)

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started = perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = choose_request_id(find_header(scope, HEADER))
        state[ANSWER_HEADERS] = headers = [(HEADER, request_id.encode())]
        answer = _Answer(send, headers, drain)
        task = limit.begin()
        is_accepted = drain.accepts(scope["path"])
        drain.in_flight += is_accepted
        try:
            try:
                await app(scope, receive, answer.send)
            except asyncio.CancelledError:
                if not limit.end(task):
                    raise
                await _refuse_late(answer, timeout_s)
        except asyncio.CancelledError:
            if not state.get("is_disconnected"):
                raise
        except Exception:
            _LOGGER.exception("request %s failed", request_id)
            if answer.status:
                raise
            await refuse(answer.send, UNFORESEEN, _MESSAGE)
        finally:
            limit.end(task)
            drain.in_flight -= is_accepted
            on_end(_describe(scope, answer.status or CLIENT_LEFT, perf_counter() - started))

    return watch


class _Answer:
    """A request's answer on its way out: its status is noted, and headers are added."""

    __slots__ = ("_drain", "_headers", "_send", "status")

    def __init__(self, send: Send, headers: list[Header], drain: Drain) -> None:
        self.status = 0
        self._send = send
        self._headers = headers
        self._drain = drain

    def send(self, message: Message) -> Awaitable[None]:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self._headers]
            message["headers"] = self._drain.close_after(headers) if self._drain.is_draining else headers
        return self._send(message)


async def _refuse_late(answer: _Answer, timeout_s: float) -> None:
    message = _TOO_LATE.format(timeout_s)
    if answer.status:
        raise TimeoutError(message)
    await refuse(answer.send, TIMED_OUT, message)


def _describe(scope: Scope, status: int, seconds: float) -> Access:
    return Access(
        client=scope["client"][0] if scope.get("client") else "-",
        method=scope["method"],
        path=scope["path"],
        status=status,
        seconds=seconds,
        request_id=scope["state"]["request_id"],
    )
