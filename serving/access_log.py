"""The access log: a line a request, made and written in blocks, so that a line costs a few microseconds."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

import msgspec

from poolgraph.serving.logs import LogFormat

_FLUSH_INTERVAL_S: Final = 0.2
_FLUSH_LINES: Final = 256
_MAX_PATH: Final = 200


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """One request that has ended.

    Attributes:
        client: The peer's address.
        method: The HTTP method.
        path: The path, without the query.
        status: What was answered; 499 if the client left before.
        seconds: From the request's headers to the answer's end.
        request_id: Its id.
    """

    client: str
    method: str
    path: str
    status: int
    seconds: float
    request_id: str


class AccessRecord(msgspec.Struct, kw_only=True):
    """One request as the access log shows it. The query is left out: it may hold a text or a key."""

    time: str
    client: str
    method: str
    path: str
    status: int
    milliseconds: float
    request_id: str
    logger: str = "access"


class AccessLog:
    """Lines of requests, written a block at a time.

    Args:
        log_format: ``text`` or ``json``.
        stream: Where to; standard error unless told.
    """

    def __init__(self, log_format: LogFormat, stream: TextIO | None = None) -> None:
        self._write_line: Callable[[AccessRecord], str] = _FORMS[log_format]
        self._stream = stream or sys.stderr
        self._ended: list[tuple[float, Access]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = 0
        self._shown_second = ""

    def add(self, access: Access) -> None:
        """Note a request; call it in the event loop."""
        self._ended.append((time.time(), access))
        if len(self._ended) >= _FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Write what is waiting; a stream that cannot take it is passed over, for logs must stop no answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        lines = "".join(self._write_line(self._describe(when, access)) for when, access in ended)
        try:
            self._stream.write(lines)
            self._stream.flush()
        except OSError:
            return

    def _describe(self, when: float, access: Access) -> AccessRecord:
        path = access.path
        return AccessRecord(
            time=self._show_time(when),
            client=access.client,
            method=access.method,
            path=path if path.isprintable() and len(path) <= _MAX_PATH else ascii(path[:_MAX_PATH]),
            status=access.status,
            milliseconds=round(access.seconds * 1e3, 2),
            request_id=access.request_id,
        )

    def _show_time(self, when: float) -> str:
        whole = int(when)
        if whole != self._second:
            self._second, self._shown_second = whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        return f"{self._shown_second}.{int((when - whole) * 1000):03d}Z"


def _write_text(record: AccessRecord) -> str:
    return (
        f"{record.time} access {record.client} {record.method} {record.path} {record.status} "
        f"{record.milliseconds:.2f}ms {record.request_id}\n"
    )


_ENCODER: Final = msgspec.json.Encoder()


def _write_json(record: AccessRecord) -> str:
    return _ENCODER.encode(record).decode() + "\n"


_FORMS: Final = {"text": _write_text, "json": _write_json}
