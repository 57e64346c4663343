"""Middleware: an API key on every route but the public ones."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from poolgraph.serving.asgi_types import ASGIApp, Receive, Scope, Send
from poolgraph.serving.refusals import UNAUTHORIZED, refuse

ALWAYS_PUBLIC: Final = frozenset({"/health", "/ping"})
_MESSAGE: Final = "This server needs an API key: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
_CHALLENGE: Final = ((b"www-authenticate", b"Bearer"),)
_SCHEME: Final = b"bearer "


def require_api_keys(app: ASGIApp, api_keys: Sequence[str], public_routes: Collection[str] = ()) -> ASGIApp:
    """Let requests through that carry one of the keys; answer 401 to others.

    Keys are compared by their SHA-256, each with all, in a time that depends on neither.

    Args:
        app: What is guarded.
        api_keys: The keys; with none, the application is returned as it is.
        public_routes: Paths that need no key, beside those of ``ALWAYS_PUBLIC``.
    """
    if not api_keys:
        return app
    digests = tuple(sha256(key.encode()).digest() for key in api_keys)
    public = ALWAYS_PUBLIC | frozenset(public_routes)

    def guard(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or scope["path"] in public or _has_key(scope, digests):
            return app(scope, receive, send)
        return refuse(send, UNAUTHORIZED, _MESSAGE, _CHALLENGE)

    return guard


def _has_key(scope: Scope, digests: Sequence[bytes]) -> bool:
    """Return whether one of the request's keys is known; every key is compared with every digest."""
    is_known = False
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            key = value
        elif name == b"authorization" and value[: len(_SCHEME)].lower() == _SCHEME:
            key = value[len(_SCHEME) :].strip()
        else:
            continue
        digest = sha256(key).digest()
        for known in digests:
            is_known |= compare_digest(digest, known)
    return is_known
