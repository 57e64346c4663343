"""A request's body to its structure: what clients write that differs from it is taken for what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from poolgraph.graphs.manifest import UNREADABLE

_NULL: Final = b"null"


def build_decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """Return a function from a body's bytes to a structure.

    Some clients send null for what their caller left out, also where a field has a default that is not null. Some have
    no whole numbers, and send 256.0, or put numbers and booleans into strings, which vLLM's models read, too. Only a
    body that does not fit as it is, is looked at again so: all others cost no more for it.
    """
    decode, decode_loosely = (msgspec.json.Decoder(kind, strict=strict).decode for strict in (True, False))
    drop_nulls = _build_dropper(kind)

    def decode_body(data: bytes) -> Any:
        try:
            return decode(data)
        except msgspec.ValidationError:
            shorter = drop_nulls(data)
        return decode_loosely(data if shorter is None else shorter)

    return decode_body


def _build_dropper(kind: type[msgspec.Struct]) -> Callable[[bytes], bytes | None]:
    """Return a function from a body to one without the nulls that stand for another default; None if it has none.

    What a structure has no field for is passed over: it changes nothing, and a client can send any number of it.
    """
    fields = msgspec.structs.fields(kind)
    defaulted = {field.encode_name for field in fields if not field.required and field.default is not None}
    members = msgspec.defstruct(kind.__name__, [(field.encode_name, msgspec.Raw, msgspec.Raw()) for field in fields])
    read = msgspec.json.Decoder(members).decode

    def drop_nulls(data: bytes) -> bytes | None:
        try:
            given = {name: value for name, value in msgspec.structs.asdict(read(data)).items() if bytes(value)}
        except UNREADABLE:
            return None
        kept = {name: value for name, value in given.items() if name not in defaulted or bytes(value) != _NULL}
        return msgspec.json.encode(kept) if len(kept) < len(given) else None

    return drop_nulls
