"""Which errors say that an allocation failed."""

from __future__ import annotations

from typing import Final

_SAID: Final = (
    "failed to allocate memory",
    "out of memory",
    "is smaller than requested bytes",
    "status_alloc_failed",
    "can't allocate memory",
    "unable to allocate",
)
"""What ONNX Runtime, CUDA, its libraries and numpy say then, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    message = str(error).lower()
    return any(words in message for words in _SAID)
