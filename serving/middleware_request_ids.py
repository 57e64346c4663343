"""Middleware: every request has an id, the client's where it is sane, and every answer names it."""

from __future__ import annotations

import os
import re
from typing import Final

from poolgraph.serving.asgi_types import ASGIApp, Message, Receive, Scope, Send, find_header

HEADER: Final = b"x-request-id"
MAX_LENGTH: Final = 128
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,%d}" % MAX_LENGTH)


def name_requests(app: ASGIApp) -> ASGIApp:
    """Give each request ``scope["state"]["request_id"]``, and each answer the header X-Request-Id.

    An id of the client is kept if it has 1 to 128 letters, digits and ``. _ : / + = @ -``, so that it can be put into
    logs and headers as it is; else a new one is made, 32 hexadecimal digits.
    """

    async def name(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = choose_request_id(find_header(scope, HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        header = (HEADER, request_id.encode())

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await app(scope, receive, send_named)

    return name


def choose_request_id(given: bytes | None) -> str:
    """Return the client's id if it is sane, else a new one."""
    if given is not None and _SANE.fullmatch(given):
        return given.decode("ascii")
    return os.urandom(16).hex()
