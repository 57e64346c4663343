"""The shapes of ASGI, by which middleware and application meet whatever framework is between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

ENDS_WITH_CLIENT: Final = "ends_with_client"
"""The key of a request's state by which a server says that it cancels the request's task when its client hangs up."""

ANSWER_HEADERS: Final = "answer_headers"
"""The key of a request's state to the headers, a list, that are added to its answer, whoever gives it."""


def find_header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first value of a header, whose name is in lower case; None where the request has none."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
