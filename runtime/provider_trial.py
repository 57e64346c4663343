"""Whether an execution provider really loads: a session of one node, on it alone."""

from __future__ import annotations

from types import ModuleType
from typing import Final

IDENTITY_MODEL: Final = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x02\x10\x11"
)
"""A model of one node, y = Identity(x) with x of shape (1,) in float, IR version 8 and opset 17.

Written by hand in protobuf's wire format, since the onnx package is not there at run time: each field is a byte
``number << 3 | wire type`` and then a varint, or a length and that many bytes. A test reads it with onnx.
"""

FATAL: Final = 4
"""The severity from which on ONNX Runtime writes to standard error what it also raises, or what we say ourselves."""


def try_provider(onnxruntime: ModuleType, name: str) -> str | None:
    """Return None where a session runs on a provider; else what ONNX Runtime said, "" where it fell back silently.

    Args:
        onnxruntime: The module.
        name: The provider's full name.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    try:
        session = onnxruntime.InferenceSession(IDENTITY_MODEL, options, providers=[name], enable_fallback=False)
    except Exception as error:
        return str(error)
    return None if name in session.get_providers() else ""
