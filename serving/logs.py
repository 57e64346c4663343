"""Structured logs of the process on standard error, as lines of text or of JSON, never with a client's texts."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Final, Literal, TextIO

import msgspec

LogFormat = Literal["text", "json"]

LEVELS: Final = ("debug", "info", "warning", "error")
OWN_LOGGER: Final = "poolgraph.serving"
_LOGGERS: Final = (OWN_LOGGER, "uvicorn.error")


class EventRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event of the process."""

    time: str
    level: str
    logger: str
    message: str
    trace: list[str] | None = None


def format_time(seconds: float) -> str:
    """Return a time in UTC as ISO 8601 with milliseconds."""
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


class EventFormatter(logging.Formatter):
    """Formats events in either form; of an exception, the type and where it was raised, but never its message.

    An exception's message may quote the text that caused it.
    """

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._is_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event = EventRecord(
            time=format_time(record.created),
            level=record.levelname.lower(),
            logger=record.name.partition(".")[0],
            message=record.getMessage(),
            trace=_describe_exception(record),
        )
        if self._is_json:
            return msgspec.json.encode(event).decode()
        trace = "".join(f"\n  {line}" for line in event.trace or ())
        return f"{event.time} {event.level} {event.message}{trace}"


def _describe_exception(record: logging.LogRecord) -> list[str] | None:
    """Return the exception's type and the lines of code that it passed, innermost last."""
    if record.exc_info is None or record.exc_info[1] is None:
        return None
    lines = []
    traceback = record.exc_info[2]
    while traceback is not None:
        code = traceback.tb_frame.f_code
        lines.append(f"{code.co_filename}:{traceback.tb_lineno} {code.co_qualname}")
        traceback = traceback.tb_next
    kind = type(record.exc_info[1])
    return [*lines, f"{kind.__module__}.{kind.__qualname__}"]


def configure_logs(log_format: LogFormat, level: str) -> None:
    """Send the server's events, uvicorn's errors and Python's warnings to standard error."""
    stream = logging.StreamHandler()
    stream.setFormatter(EventFormatter(log_format))
    warnings.showwarning = _log_warning
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [stream]
        logger.propagate = False
        # uvicorn's own notices of starting and stopping say again what ours say.
        logger.setLevel(level.upper() if name == OWN_LOGGER else max(logging.WARNING, _number(level)))


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger(OWN_LOGGER).warning("%s: %s", category.__name__, message)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
