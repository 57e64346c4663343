"""Middleware: each request timed, for the access log and the metrics; what nobody foresaw becomes a plain 500."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Final

from poolgraph.serving.access_log import Access
from poolgraph.serving.asgi_types import ASGIApp, Message, Receive, Scope, Send
from poolgraph.serving.logs import OWN_LOGGER
from poolgraph.serving.refusals import UNFORESEEN, refuse

CLIENT_LEFT: Final = 499
"""The status under which a request is counted whose client went away, as in nginx's logs; nobody is sent it."""

_LOGGER: Final = logging.getLogger(OWN_LOGGER)
_MESSAGE: Final = "The server failed to answer this request. Its logs say more, under the request's id."


def watch_access(app: ASGIApp, on_end: Callable[[Access], None]) -> ASGIApp:
    """Call ``on_end`` after each request, and answer 500 to an exception that the application lets out."""

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started = perf_counter()
        status = 0

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_watched)
        except asyncio.CancelledError:
            if not scope["state"].get("is_disconnected"):
                raise
        except Exception:
            _LOGGER.exception("request %s failed", scope["state"]["request_id"])
            if status:
                raise
            await refuse(send_watched, UNFORESEEN, _MESSAGE)
        finally:
            on_end(_describe(scope, status or CLIENT_LEFT, perf_counter() - started))

    return watch


def _describe(scope: Scope, status: int, seconds: float) -> Access:
    return Access(
        client=scope["client"][0] if scope.get("client") else "-",
        method=scope["method"],
        path=scope["path"],
        status=status,
        seconds=seconds,
        request_id=scope["state"]["request_id"],
    )
