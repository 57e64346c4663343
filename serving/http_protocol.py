"""uvicorn's HTTP protocol with limits: headers, slow clients, connections; and work that ends with its client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from poolgraph.serving.asgi_types import ENDS_WITH_CLIENT
from poolgraph.serving.refusals import BAD_REQUEST, HEADERS_TOO_LARGE, TOO_SLOW, UNAVAILABLE, Refusal

_SLOWEST: Final = 64
"""Looks, one each ``read_timeout_s``, within which a client must have read its answer: it would fill memory."""

_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})
"""The headers of a request to change the protocol, and what ``Connection`` calls them."""

_HEADER_OVERHEAD: Final = 4
"""Bytes of ``": "`` and the end of the line."""

_INTERIM: Final = b"HTTP/1.1 100"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take.

    Attributes:
        max_header_bytes: Of the URL and all headers of a request.
        max_headers: Their number.
        read_timeout_s: From a request's first byte (a connection's first request: from the connection) to its last.
            Also in how long a client must read a 64th of its answer.
        max_connections: Open at the same time.
    """

    max_header_bytes: int
    max_headers: int
    read_timeout_s: float
    max_connections: int


class HeadersTooLarge(Exception):
    """The request's URL and headers pass a limit."""


class WholeAnswers:
    """A request's side of a transport: an answer's head waits for the body that follows it, so that both are one write.

    Two would be two system calls, two packets, and twice a client that wakes up.
    """

    __slots__ = ("_has_body", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport, *, has_body: bool) -> None:
        self._transport = transport
        self._has_body = has_body
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or keep what begins an answer with a body; an interim answer has none."""
        if self._has_body and not data.startswith(_INTERIM):
            self._has_body = False
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""

    def is_closing(self) -> bool:
        """Return whether the connection is closed or about to be."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Write what is left and close."""
        if self._head:
            self.write(b"")
        self._transport.close()


class LimitedProtocol(HttpToolsProtocol):
    """A connection within ``limits``, which ``limit_protocol`` sets.

    A client that goes away cancels its request's task, so that its texts leave the queue.
    """

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timer: asyncio.TimerHandle | None = None
        self._is_reading = True
        self._is_in_headers = True
        self._has_begun_here = False
        self._num_header_bytes = 0
        self._refusal: tuple[Refusal, str] | None = None
        self._running: tuple[Any, asyncio.Task[None]] | None = None
        self._is_over = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection above the limit; else wait for its first request, but not for ever."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(UNAVAILABLE, f"The server has {self.limits.max_connections} connections, its limit.")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request under way: nobody waits for its answer."""
        self._stop_timer()
        super().connection_lost(exc)
        if self._running is not None:
            cycle, task = self._running
            if not task.done():
                cycle.disconnected = True
                cycle.scope["state"]["is_disconnected"] = True
                task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse; run the timer while a request is incomplete."""
        if self.transport.is_closing() or self._is_over:
            return
        self._has_begun_here = False
        self._parse(data)
        if self.parser is None or self.transport.is_closing() or self._is_over:
            return
        if not self._is_reading:
            self._stop_timer()
            self._stay_idle()
            return
        self._start_timer()
        # The parser hands a header on when it is complete: one without an end is seen here alone.
        if self._is_in_headers and not self._has_begun_here:
            self._num_header_bytes += len(data)
            if self._num_header_bytes > self.limits.max_header_bytes:
                self._refuse(HEADERS_TOO_LARGE, self._describe_limits())

    def _parse(self, data: bytes) -> None:
        """As uvicorn's, but a request to upgrade is one like others, and what follows a refused one is not read."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._begin_again() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self.logger.debug("not a valid HTTP request")
                self.send_400_response("")
                return
            else:
                return

    def _wants_upgrade(self) -> bool:
        """Return whether the parser leaves the request's body unread; CONNECT, which has none, is not served at all."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _begin_again(self) -> bytes:
        """Return the head of a request without its wish for another protocol, for a new parser.

        The old one has not read its body: it takes what follows for the other protocol. HTTP lets a server ignore the
        wish (RFC 9110, section 7.8), and clients such as Java's send it with every first request.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        kept = [(name, _drop_upgrades(name, value)) for name, value in self.headers if name not in _UPGRADES]
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode()), *(b"%b: %b" % header for header in kept)]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Begin to count and to time the next request."""
        self._stop_timer()
        self._is_reading = self._is_in_headers = self._has_begun_here = True
        self._num_header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the URL with the headers."""
        super().on_url(url)
        self._count_header_bytes(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the header."""
        super().on_header(name, value)
        self._count_header_bytes(len(name) + len(value) + _HEADER_OVERHEAD)

    def on_headers_complete(self) -> None:
        """Hand the request on; one that wishes for another protocol comes again, see ``_begin_again``."""
        if self._wants_upgrade():
            return
        self._is_in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the time: the client has said all."""
        if self._wants_upgrade():
            return
        self._is_reading = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Watch that the client reads its answer."""
        super().on_response_complete()
        if size := self.transport.get_write_buffer_size():
            self.loop.call_later(self.limits.read_timeout_s, self._check_progress, size, size // _SLOWEST)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client still reads its answer is not idle."""
        if not self.transport.get_write_buffer_size():
            super().timeout_keep_alive_handler()
        elif not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or passes a limit, with the API's error body."""
        refusal, message = self._refusal or (BAD_REQUEST, "This is not a valid HTTP request.")
        self._refuse(refusal, message)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """As uvicorn's, but the task is kept, and the application is told that it need not watch for the client."""
        cycle.transport = WholeAnswers(cycle.transport, has_body=cycle.scope["method"] != "HEAD")
        cycle.scope["state"][ENDS_WITH_CLIENT] = True
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        self._running = (cycle, task)

    def _count_header_bytes(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        limits = self.limits
        if self._num_header_bytes > limits.max_header_bytes or len(self.headers) > limits.max_headers:
            self._refusal = (HEADERS_TOO_LARGE, self._describe_limits())
            raise HeadersTooLarge

    def _describe_limits(self) -> str:
        limits = self.limits
        return (
            f"The request's URL and headers are larger than {limits.max_header_bytes} bytes, "
            f"or more than {limits.max_headers} headers."
        )

    def _start_timer(self) -> None:
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.limits.read_timeout_s, self._cut_off)

    def _stop_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _cut_off(self) -> None:
        """End a connection whose client took too long to send its request."""
        self._read_timer = None
        if self.transport.is_closing():
            return
        if self.headers is None or (self.cycle is not None and self.cycle.response_started):
            self.transport.close()
            return
        seconds = f"{self.limits.read_timeout_s:g}"
        self._refuse(TOO_SLOW, f"The request did not arrive within {seconds} seconds of its first byte.")

    def _stay_idle(self) -> None:
        """Let an idle connection's time run on: uvicorn stops it for any byte, also one that begins no request."""
        if self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _check_progress(self, previous_size: int, least: int) -> None:
        """Drop a connection whose client read less than ``least`` bytes of its answer since the last look."""
        if self.parser is None:
            return
        size = self.transport.get_write_buffer_size()
        if size and previous_size - size < max(1, least):
            self.transport.abort()
        elif size:
            self.loop.call_later(self.limits.read_timeout_s, self._check_progress, size, least)

    def _refuse(self, refusal: Refusal, message: str) -> None:
        """Answer and close; where an earlier request is still unanswered, let its answer be the connection's last."""
        if self.transport.is_closing():
            return
        if (last := self._find_unanswered()) is not None:
            self._is_over = True
            self._stop_timer()
            last.keep_alive = False
            return
        self.transport.write(refusal.encode_answer(message, self.server_state.default_headers))
        self.transport.close()

    def _find_unanswered(self) -> Any:
        """Return the last whole request that waits for its answer while a later one comes in; None without one."""
        if self._running is None or self._running[0].response_complete:
            return None
        if self._is_in_headers or not self._is_reading:
            return self.cycle
        return None if self._running[0] is self.cycle else self._running[0]


def _drop_upgrades(name: bytes, value: bytes) -> bytes:
    """Return a header's value; of ``Connection``, what has nothing to do with another protocol."""
    if name != b"connection":
        return value
    return b", ".join(one for one in value.split(b",") if one.strip().lower() not in _UPGRADES)


def limit_protocol(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """Return the protocol's class with these limits, as uvicorn makes its instances itself."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
