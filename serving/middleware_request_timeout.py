"""Middleware: no request takes longer than the server allows."""

from __future__ import annotations

import asyncio

from poolgraph.serving.asgi_types import ASGIApp, Message, Receive, Scope, Send
from poolgraph.serving.refusals import TIMED_OUT, refuse


def limit_time(app: ASGIApp, timeout_s: float) -> ASGIApp:
    """Answer 504 to a request that takes longer, and cancel it, so that its texts leave the queue.

    An answer that has begun is cut off: its client sees the connection end early.
    """
    message = f"The request took longer than {timeout_s:g} seconds, the server's limit. Send fewer texts a request."

    async def limit(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        has_started = False

        async def send_watched(event: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(event)

        try:
            async with asyncio.timeout(timeout_s) as timer:
                await app(scope, receive, send_watched)
        except TimeoutError:
            if has_started or not timer.expired():
                raise
            await refuse(send, TIMED_OUT, message)

    return limit
