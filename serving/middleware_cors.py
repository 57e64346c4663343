"""Middleware: cross-origin requests of browsers, for the origins that were named and no others."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from typing import Final

from poolgraph.serving.asgi_types import ANSWER_HEADERS, ASGIApp, Header, Receive, Scope, Send, find_header

ANY_ORIGIN: Final = "*"
_METHODS: Final = (b"access-control-allow-methods", b"GET, POST")
_ALLOW_HEADERS: Final = b"access-control-allow-headers"
_OWN_HEADERS: Final = b"authorization, content-type, x-api-key, x-request-id"
_ASKED: Final = b"access-control-request-headers"
_MAX_ASKED: Final = 1024
"""Bytes of the names of headers that a preflight is given back; clients of OpenAI and Cohere ask for some 200."""

_NAMES: Final = re.compile(rb"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*")
_MAX_AGE: Final = (b"access-control-max-age", b"600")
_EXPOSED: Final = (
    b"access-control-expose-headers",
    b"metadata, retry-after, x-request-id, x-tokens-dropped, x-tokens-used",
)
_VARY: Final = (b"vary", b"origin")
_VARY_ASKED: Final = (b"vary", b"origin, " + _ASKED)


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of these origins read the answers; with no origin, the application is returned as it is.

    Credentials (cookies) are never allowed: the API has none. A page of another origin gets the answer without the
    headers that would let its browser hand it over.
    """
    if not origins:
        return app
    allowed = frozenset(origin.encode() for origin in origins)

    def share(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        origin = find_header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None:
            return app(scope, receive, send)
        headers = _allow(origin, allowed)
        if scope["method"] == "OPTIONS" and find_header(scope, b"access-control-request-method") is not None:
            return _answer_preflight(send, headers, find_header(scope, _ASKED) or b"")
        scope["state"][ANSWER_HEADERS] += [*headers, _EXPOSED, _VARY]
        return app(scope, receive, send)

    return share


def _allow(origin: bytes, allowed: frozenset[bytes]) -> list[Header]:
    if ANY_ORIGIN.encode() in allowed:
        return [(b"access-control-allow-origin", b"*")]
    return [(b"access-control-allow-origin", origin)] if origin in allowed else []


def _permit(asked: bytes) -> list[Header]:
    """Return what an allowed origin may send: the headers that it asks for, where they are such, else the usual ones.

    Clients put headers of their own into every request, and a browser sends none that is not allowed by name.
    """
    if len(asked) <= _MAX_ASKED and _NAMES.fullmatch(asked):
        return [_METHODS, (_ALLOW_HEADERS, asked), _MAX_AGE, _VARY_ASKED]
    return [_METHODS, (_ALLOW_HEADERS, _OWN_HEADERS), _MAX_AGE, _VARY]


async def _answer_preflight(send: Send, headers: list[Header], asked: bytes) -> None:
    all_headers = [*headers, *(_permit(asked) if headers else [_VARY]), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200 if headers else 400, "headers": all_headers})
    await send({"type": "http.response.body", "body": b""})
