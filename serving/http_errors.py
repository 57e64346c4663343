"""Errors to HTTP answers: one table, and bodies that never show a path or a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from poolgraph.errors import InputError, PoolgraphError, SessionError, TaskNotSupported
from poolgraph.serving.endpoint import Answer, answer_json
from poolgraph.serving.engine_errors import (
    AnswerTooLarge,
    DeadlineExceeded,
    EngineStopped,
    ModelNotFound,
    NotReady,
    QueueFull,
)
from poolgraph.serving.schema_common import ErrorBody, ErrorDetail

_log: Final = logging.getLogger("poolgraph.serving")

_FAILED: Final = "The model could not answer this request. The server's log has the cause, under this request's id."


class RequestTooLarge(PoolgraphError):
    """More texts, or longer ones, than the server takes in one request."""

    def __init__(self, message: str, *, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class TaskNotServed(PoolgraphError):
    """The route is there for another model than the one that was asked."""


class InvalidBody(PoolgraphError):
    """The body is no JSON, or not of the request's shape."""


class UnsupportedContent(PoolgraphError):
    """The body is declared as something else than JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """How a kind of error is told.

    Attributes:
        status: The HTTP status.
        kind: ``type`` in the body.
        describe: The message; None hides the error and logs it.
        parameter: Name of the field at fault, unless the error says it.
    """

    status: int
    kind: str
    describe: Callable[[Exception], str] | None = str
    parameter: str | None = None


def _message(error: Exception) -> str:
    return error.message if isinstance(error, InputError) else str(error)


def _validation(error: Exception) -> str:
    return f"1 validation error:\n  {error}"


ERROR_ROWS: Final[tuple[tuple[type[Exception], ErrorRow], ...]] = (
    (InvalidBody, ErrorRow(status=400, kind="Bad Request", describe=_validation)),
    (InputError, ErrorRow(status=400, kind="BadRequestError", describe=_message)),
    (TaskNotSupported, ErrorRow(status=400, kind="BadRequestError")),
    (ModelNotFound, ErrorRow(status=404, kind="NotFoundError", parameter="model")),
    (RequestTooLarge, ErrorRow(status=413, kind="RequestTooLarge")),
    (AnswerTooLarge, ErrorRow(status=413, kind="RequestTooLarge")),
    (UnsupportedContent, ErrorRow(status=415, kind="UnsupportedMediaType")),
    (QueueFull, ErrorRow(status=429, kind="TooManyRequests")),
    (TaskNotServed, ErrorRow(status=501, kind="NotImplementedError")),
    (EngineStopped, ErrorRow(status=503, kind="ServiceUnavailable")),
    (NotReady, ErrorRow(status=503, kind="ServiceUnavailable")),
    (DeadlineExceeded, ErrorRow(status=504, kind="DeadlineExceeded")),
    (SessionError, ErrorRow(status=500, kind="InternalServerError", describe=None)),
    (Exception, ErrorRow(status=500, kind="InternalServerError", describe=None)),
)
"""The first row whose class fits; every error has one."""


def answer_error(error: Exception, hidden: Mapping[str, str] | None = None) -> Answer:
    """Return an error as an answer; what is nobody's business is logged instead.

    Args:
        error: What was raised.
        hidden: Paths that a message may hold, and what is said in their place.
    """
    row = next(row for kind, row in ERROR_ROWS if isinstance(error, kind))
    if row.describe is None:
        _log.error("a request failed", exc_info=error)
    message = _FAILED if row.describe is None else row.describe(error)
    # A name that the client made up is told as it is: replaced, it would tell that it is a path of this machine.
    is_own = isinstance(error, ModelNotFound) and error.name is not None
    for path, name in () if is_own else (hidden or {}).items():
        message = message.replace(path, name)
    parameter = getattr(error, "parameter", None) or row.parameter
    detail = ErrorDetail(message=message, type=row.kind, param=parameter, code=row.status)
    retry = getattr(error, "retry_after", None)
    headers = () if retry is None else ((b"retry-after", str(retry).encode()),)
    return answer_json(ErrorBody(error=detail), status=row.status, headers=headers)


def answer_detail(status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """Return what a request that meets no route gets, as FastAPI words it."""
    return Answer(body=msgspec.json.encode({"detail": detail}), status=status, headers=headers)
