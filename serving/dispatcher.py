"""The ASGI application: a path looked up, a body read and decoded, a route's function called, its answer sent."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec

from poolgraph.graphs.manifest import UNREADABLE
from poolgraph.serving.asgi_types import ENDS_WITH_CLIENT, Message, Receive, Scope, Send, find_header
from poolgraph.serving.bodies import build_decoder
from poolgraph.serving.endpoint import Answer, Call, Context, Endpoint
from poolgraph.serving.http_errors import InvalidBody, UnsupportedContent, answer_detail, answer_error
from poolgraph.serving.routing import list_paths

_WATCH_AFTER: Final = 0.05
"""Seconds before a request is watched for its client hanging up; most are answered by then."""

_JSON_TYPES: Final = frozenset({b"", b"application/json"})


_LARGE_BODY: Final = 1 << 20
"""Bytes of a body while which is decoded the garbage collector rests: millions of small lists would start it over and
over (measured: 8.4 s for 32 MiB of empty lists, 0.9 s without), and nothing else runs until they are read."""


class ClientGone(Exception):
    """The client hung up before its request was whole."""


class Dispatcher:
    """Answers HTTP requests by a table of routes.

    A request's function runs in the request's own task. A client that hangs up has it cancelled, so that its texts
    leave the queue.
    """

    def __init__(self, endpoints: Sequence[Endpoint], context: Context) -> None:
        self._context = context
        self._hidden = list_paths(context.registry)
        self._routes: dict[tuple[str, str], tuple[Endpoint, Any]] = {
            (one.method, one.path): (one, _build_decoder(one)) for one in endpoints
        }
        self._methods: dict[str, list[str]] = {}
        for one in endpoints:
            self._methods.setdefault(one.path, []).append(one.method)
        self._open = {one.path.partition("{")[0]: one.path for one in endpoints if "{" in one.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or the server's lifespan messages."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        if scope["type"] != "http":
            return
        ends_with_client = scope.get("state", {}).get(ENDS_WITH_CLIENT)
        watch = None if ends_with_client else _Watch(receive)
        try:
            await _send(send, await self._answer_route(scope, receive, watch))
        except ClientGone:
            return
        except asyncio.CancelledError:
            if watch is None or not watch.has_hung_up:
                raise
            watch.task.uncancel()

    async def _answer_route(self, scope: Scope, receive: Receive, watch: _Watch | None) -> Answer:
        path, rest = self._find_path(scope["path"])
        route = self._routes.get(("GET" if scope["method"] == "HEAD" else scope["method"], path))
        if route is None:
            return self._answer_no_route(path)
        endpoint, decode = route
        try:
            body = None if decode is None else _decode(decode, await _read_json(scope, receive))
            if watch is not None:
                watch.start()
            return await endpoint.function(_make_call(self._context, scope, rest), body)
        except ClientGone:
            raise
        except Exception as error:
            return answer_error(error, self._hidden)
        finally:
            if watch is not None:
                watch.stop()

    def _find_path(self, path: str) -> tuple[str, str]:
        """Return the path of the route that a request's path meets, and what stands in its variable's place."""
        for start, route in self._open.items():
            if path.startswith(start) and path != start:
                return route, path[len(start) :]
        return path, ""

    def _answer_no_route(self, path: str) -> Answer:
        methods = self._methods.get(path)
        if methods is None:
            return answer_detail(404, "Not Found")
        return answer_detail(405, "Method Not Allowed", ((b"allow", ", ".join(methods).encode()),))


class _Watch:
    """Cancels a request's task when its client hangs up.

    It begins a moment after the request: a task for each of the many that are answered sooner would cost more than it
    saves.
    """

    def __init__(self, receive: Receive) -> None:
        self.has_hung_up = False
        task = asyncio.current_task()
        assert task is not None, "ASGI applications run in tasks"
        self.task: asyncio.Task[Any] = task
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch, in a moment."""
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._begin)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._receive()
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self.has_hung_up = True
        self.task.cancel()


def _build_decoder(endpoint: Endpoint) -> Any:
    return None if endpoint.body_type is None else build_decoder(endpoint.body_type)


async def _read_json(scope: Scope, receive: Receive) -> bytes:
    """Return a request's body.

    Raises:
        UnsupportedContent: it is declared as something else than JSON.
        ClientGone: the client hung up.
    """
    declared = find_header(scope, b"content-type") or b""
    kind = declared.partition(b";")[0].strip().lower()
    if kind not in _JSON_TYPES and not kind.endswith(b"+json"):
        shown = kind.decode("latin-1")
        raise UnsupportedContent(f"Unsupported Media Type: Only 'application/json' is allowed, not {shown!r}")
    coding = (find_header(scope, b"content-encoding") or b"identity").strip().lower()
    if coding != b"identity":
        raise UnsupportedContent(f"Bodies are taken uncompressed, not as {coding.decode('latin-1')!r}")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        return whole
    parts: list[bytes] = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise ClientGone


def _decode(decode: Callable[[bytes], Any], data: bytes) -> Any:
    """Return a body as its structure.

    Raises:
        InvalidBody: it is no JSON, or of another shape.
    """
    rests = len(data) > _LARGE_BODY and gc.isenabled()
    if rests:
        gc.disable()
    try:
        return decode(data)
    except UNREADABLE as error:
        raise InvalidBody(_describe_invalid(error)) from error
    finally:
        if rests:
            gc.enable()


def _make_call(context: Context, scope: Scope, rest: str) -> Call:
    state: Mapping[str, Any] = scope.get("state") or {}
    named = state.get("request_id")
    is_given = named is not None and find_header(scope, b"x-request-id") == named.encode()
    request_id = named if is_given else None
    return Call(context=context, request_id=request_id, fallback_id=named or uuid4().hex, rest=rest)


def _describe_invalid(error: Exception) -> str:
    """Return what msgspec says of a body in the shape in which pydantic says it."""
    text, _, path = str(error).partition(" - at `$")
    place = tuple(part for part in path.rstrip("`").replace("[...]", "").split(".") if part)
    kind = "value_error" if isinstance(error, msgspec.ValidationError) else "json_invalid"
    return str({"type": kind, "loc": ("body", *place), "msg": text})


async def _send(send: Send, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    message: Message = {"type": ""}
    while message["type"] != "lifespan.shutdown":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
