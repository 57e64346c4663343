"""The id of a request: the client's where it is sane; every answer names it."""

from __future__ import annotations

import os
import re
from typing import Final

HEADER: Final = b"x-request-id"
MAX_LENGTH: Final = 128
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,%d}" % MAX_LENGTH)


def choose_request_id(given: bytes | None) -> str:
    """Return the id of a request.

    An id of the client is kept if it has 1 to 128 letters, digits and ``. _ : / + = @ -``, so that it can be put into
    logs and headers as it is; else a new one is made, 32 hexadecimal digits.
    """
    if given is not None and _SANE.fullmatch(given):
        return given.decode("ascii")
    return os.urandom(16).hex()
