"""Middleware: while the server shuts down, what was accepted finishes and what is new is refused."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from poolgraph.serving.asgi_types import ASGIApp, Header, Receive, Scope, Send
from poolgraph.serving.refusals import UNAVAILABLE, refuse

STILL_ANSWERED: Final = frozenset({"/health", "/ping", "/metrics", "/version"})
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

    def accepts(self, path: str) -> bool:
        """Return whether a request for this path is answered now."""
        return not self.is_draining or path in STILL_ANSWERED

    def guard(self, app: ASGIApp) -> ASGIApp:
        """Return the application that refuses requests while the server drains."""

        def choose(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            if scope["type"] != "http" or self.accepts(scope["path"]):
                return app(scope, receive, send)
            return refuse(send, UNAVAILABLE, _MESSAGE, _RETRY)

        return choose

    def close_after(self, headers: list[Header]) -> list[Header]:
        """Return headers that tell a client not to send another request on its connection."""
        return headers if _CLOSE in headers else [*headers, _CLOSE]
