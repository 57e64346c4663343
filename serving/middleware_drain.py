"""Middleware: while the server shuts down, what was accepted finishes and what is new is refused."""

from __future__ import annotations

from typing import Final

from poolgraph.serving.asgi_types import ASGIApp, Message, Receive, Scope, Send
from poolgraph.serving.refusals import UNAVAILABLE, refuse

STILL_ANSWERED: Final = frozenset({"/health", "/metrics", "/version"})
"""What tells of the process and asks nothing of a model."""

_MESSAGE: Final = "The server is shutting down. Send the request to another one, or again in a few seconds."
_RETRY: Final = ((b"retry-after", b"1"),)
_CLOSE: Final = (b"connection", b"close")


class Drain:
    """How far the server is with shutting down.

    Attributes:
        is_draining: Whether new work is refused; ``/ready`` then answers 503.
        in_flight: Requests that have been accepted and not answered.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.in_flight = 0

    def begin(self) -> None:
        """Refuse new work from now on."""
        self.is_draining = True

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return the application that counts requests and refuses them while the server drains."""

        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
            elif self.is_draining and scope["path"] not in STILL_ANSWERED:
                await refuse(send, UNAVAILABLE, _MESSAGE, _RETRY)
            else:
                self.in_flight += 1
                try:
                    await app(scope, receive, self._close_after(send))
                finally:
                    self.in_flight -= 1

        return count

    def _close_after(self, send: Send) -> Send:
        """Tell clients whose answer goes out while draining not to send another request on this connection."""

        async def send_last(message: Message) -> None:
            if self.is_draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _CLOSE]
            await send(message)

        return send_last
