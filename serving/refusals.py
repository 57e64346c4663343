"""What the server refuses before a route sees it, each answered with the API's error body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from poolgraph.serving.asgi_types import Header, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One kind of refusal.

    Attributes:
        status: The HTTP status.
        phrase: The status in words.
        kind: ``type`` in the error body.
        closes: Whether the connection ends with it. It stays open after a body that is too large: what still comes is
            read and dropped, for a client that is reset while it sends would not see the answer.
    """

    status: int
    phrase: str
    kind: str
    closes: bool = False

    def encode_body(self, message: str) -> bytes:
        """Return the error body as JSON."""
        error = {"message": message, "type": self.kind, "param": None, "code": self.status}
        return msgspec.json.encode({"error": error})

    def build_headers(self, body: bytes, headers: Sequence[Header] = ()) -> list[Header]:
        """Return the headers of the answer."""
        own: list[Header] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        return [*own, *([(b"connection", b"close")] if self.closes else []), *headers]

    def encode_answer(self, message: str, headers: Sequence[Header] = ()) -> bytes:
        """Return the whole answer as HTTP/1.1, for where there is no application yet."""
        body = self.encode_body(message)
        lines = [f"HTTP/1.1 {self.status} {self.phrase}".encode()]
        lines += [name + b": " + value for name, value in self.build_headers(body, headers)]
        return b"\r\n".join([*lines, b"", body])


BAD_REQUEST: Final = Refusal(status=400, phrase="Bad Request", kind="BadRequestError", closes=True)
UNAUTHORIZED: Final = Refusal(status=401, phrase="Unauthorized", kind="AuthenticationError")
TOO_SLOW: Final = Refusal(status=408, phrase="Request Timeout", kind="RequestTimeout", closes=True)
TOO_LARGE: Final = Refusal(status=413, phrase="Content Too Large", kind="RequestTooLarge")
HEADERS_TOO_LARGE: Final = Refusal(
    status=431, phrase="Request Header Fields Too Large", kind="RequestTooLarge", closes=True
)
UNFORESEEN: Final = Refusal(status=500, phrase="Internal Server Error", kind="InternalServerError")
UNAVAILABLE: Final = Refusal(status=503, phrase="Service Unavailable", kind="ServiceUnavailable", closes=True)
TIMED_OUT: Final = Refusal(status=504, phrase="Gateway Timeout", kind="DeadlineExceeded")


async def refuse(send: Send, refusal: Refusal, message: str, headers: Sequence[Header] = ()) -> None:
    """Send a refusal as an ASGI answer."""
    body = refusal.encode_body(message)
    start = {"type": "http.response.start", "status": refusal.status, "headers": refusal.build_headers(body, headers)}
    await send(start)
    await send({"type": "http.response.body", "body": body})
