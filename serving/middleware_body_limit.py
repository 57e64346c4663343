"""Middleware: a body of at most so many bytes, announced or streamed."""

from __future__ import annotations

from collections.abc import Awaitable

from poolgraph.serving.asgi_types import ASGIApp, Message, Receive, Scope, Send, find_header
from poolgraph.serving.refusals import BAD_REQUEST, TOO_LARGE, refuse


class BodyTooLarge(Exception):
    """The body that is being read has passed the limit."""


def limit_body(app: ASGIApp, max_bytes: int) -> ASGIApp:
    """Answer 413 to a body above the limit, by its Content-Length before a byte is read, else as it comes in.

    The server's parser hands on no more than Content-Length says, so that what is announced needs no counting.
    """
    message = f"The request's body is larger than {max_bytes} bytes. Send fewer or shorter texts a request."

    def limit(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return app(scope, receive, send)
        length = find_header(scope, b"content-length")
        if length is None:
            return _count_body(app, scope, receive, send, max_bytes, message)
        if not length.isdigit():
            return refuse(send, BAD_REQUEST, "Content-Length is not a number of bytes.")
        if int(length) > max_bytes:
            return refuse(send, TOO_LARGE, message)
        return app(scope, receive, send)

    return limit


async def _count_body(app: ASGIApp, scope: Scope, receive: Receive, send: Send, max_bytes: int, message: str) -> None:
    num_bytes = 0
    is_over = has_started = False

    async def receive_counted() -> Message:
        nonlocal num_bytes, is_over
        event = await receive()
        num_bytes += len(event.get("body", b""))
        if num_bytes > max_bytes:
            is_over = True
            raise BodyTooLarge
        return event

    async def send_unless_over(event: Message) -> None:
        """Swallow what the application makes of the exception: the answer is ours."""
        nonlocal has_started
        if has_started or not is_over:
            has_started = True
            await send(event)

    try:
        await app(scope, receive_counted, send_unless_over)
    except BodyTooLarge:
        if has_started:
            raise
    if is_over and not has_started:
        await refuse(send, TOO_LARGE, message)
