"""A route as data, and one request to it: what it was asked, by whom it is answered, and the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from poolgraph.errors import SessionError
from poolgraph.serving.asgi_types import Header

if TYPE_CHECKING:
    from poolgraph.serving.observer import Observer
    from poolgraph.serving.registry import ModelRegistry
    from poolgraph.serving.served_model import ServedModel
    from poolgraph.serving.settings import ServeSettings

JSON: Final = b"application/json"

TEXT_ERRORS: Final = (400, 404, 413, 415, 429, 500, 503, 504)
TASK_ERRORS: Final = (*TEXT_ERRORS, 501)
"""Statuses of errors of routes that run texts, and of those for one task, which not every model has."""

_INLINE_VALUES: Final = 32_768
"""Answers with more numbers are encoded in a thread: they would hold up all others for a millisecond or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all requests share."""

    registry: ModelRegistry
    settings: ServeSettings
    observer: Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as a route's function sees it.

    Attributes:
        context: What all requests share.
        request_id: The id that the client gave in a header, else None.
        fallback_id: The id that the server gave.
        rest: What stands in the place of the route's variable.
    """

    context: Context
    request_id: str | None
    fallback_id: str
    rest: str = ""

    def name(self, prefix: str, given: str | None = None) -> str:
        """Return the answer's id: the header's, else the body's, else the server's own."""
        return f"{prefix}-{self.request_id or given or self.fallback_id}"

    async def encode(self, model: ServedModel, build: Callable[[], Answer], num_values: int) -> Answer:
        """Build an answer, in a thread where it holds many numbers, and report the time it takes.

        Raises:
            SessionError: it holds a number that is not finite.
        """
        if num_values <= _INLINE_VALUES:
            return self._encode(model, build)
        return await asyncio.to_thread(self._encode, model, build)

    def _encode(self, model: ServedModel, build: Callable[[], Answer]) -> Answer:
        start = time.perf_counter()
        try:
            answer = build()
        except SessionError:
            self.context.observer.failed(model.names[0], "nan")
            raise
        self.context.observer.encoded(model.names[0], time.perf_counter() - start)
        return answer


Function = Callable[[Call, Any], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route.

    Attributes:
        method: ``GET`` or ``POST``.
        path: Its path; a variable in braces, at its end alone, stands for all that follows, slashes too.
        function: Answers a request; raises for what it refuses.
        summary: What it does, in one line.
        body_type: What a POST's body is decoded to; None for a GET.
        answer_type: What a good answer's body looks like; None where it is not JSON.
        content_types: Of answers whose body is not JSON.
        statuses: Of errors, for the document.
        tag: The group in the document.
    """

    method: Literal["GET", "POST"]
    path: str
    function: Function
    summary: str
    body_type: Any = None
    answer_type: Any = None
    content_types: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    tag: str = ""


def answer_json(value: msgspec.Struct | list[Any], *, status: int = 200, headers: tuple[Header, ...] = ()) -> Answer:
    """Return a structure as a JSON answer."""
    return Answer(body=_encode_json(value), status=status, headers=headers)


_encode_json: Final = msgspec.json.Encoder().encode
