"""Middleware: cross-origin requests of browsers, for the origins that were named and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from poolgraph.serving.asgi_types import ASGIApp, Header, Message, Receive, Scope, Send, find_header

ANY_ORIGIN: Final = "*"
_METHODS: Final = (b"access-control-allow-methods", b"GET, POST")
_HEADERS: Final = (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id")
_MAX_AGE: Final = (b"access-control-max-age", b"600")
_EXPOSED: Final = (b"access-control-expose-headers", b"metadata, retry-after, x-request-id")
_VARY: Final = (b"vary", b"origin")


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of these origins read the answers; with no origin, the application is returned as it is.

    Credentials (cookies) are never allowed: the API has none. A page of another origin gets the answer without the
    headers that would let its browser hand it over.
    """
    if not origins:
        return app
    allowed = frozenset(origin.encode() for origin in origins)

    async def share(scope: Scope, receive: Receive, send: Send) -> None:
        origin = find_header(scope, b"origin") if scope["type"] == "http" else None
        headers = _allow(origin, allowed)
        if origin is None:
            await app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and find_header(scope, b"access-control-request-method") is not None:
            await _answer_preflight(send, headers)
        else:
            await app(scope, receive, _add_headers(send, [*headers, _EXPOSED, _VARY]))

    return share


def _allow(origin: bytes | None, allowed: frozenset[bytes]) -> list[Header]:
    if ANY_ORIGIN.encode() in allowed:
        return [(b"access-control-allow-origin", b"*")]
    return [(b"access-control-allow-origin", origin)] if origin is not None and origin in allowed else []


async def _answer_preflight(send: Send, headers: list[Header]) -> None:
    permissions = [_METHODS, _HEADERS, _MAX_AGE] if headers else []
    all_headers = [*headers, *permissions, _VARY, (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200 if headers else 400, "headers": all_headers})
    await send({"type": "http.response.body", "body": b""})


def _add_headers(send: Send, headers: list[Header]) -> Send:
    async def send_shared(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return send_shared
