"""Vectors to what goes over the wire: JSON numbers, base64, raw bytes, Cohere's bits."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, cast

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from poolgraph.errors import InputError, SessionError
from poolgraph.runtime.sparse import SparseEmbedding

Floats = NDArray[np.float32]

_ROUND_HALF: Final = np.uint32(0x7FFF)
_SIXTEEN: Final = np.uint32(16)


def _to_bfloat16(values: Floats) -> NDArray[Any]:
    """Return the upper halves of float32 numbers, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    odd = (bits >> _SIXTEEN) & np.uint32(1)
    rounded: NDArray[np.uint16] = ((bits + _ROUND_HALF + odd) >> _SIXTEEN).astype(np.uint16)
    return rounded


def _to_float16(values: Floats) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


_CASTS: Final[Mapping[str, Callable[[Floats], NDArray[Any]]]] = MappingProxyType(
    {"float32": lambda values: values, "float16": _to_float16, "bfloat16": _to_bfloat16}
)

_INFINITE: Final[Mapping[str, int]] = MappingProxyType({"float16": 0x7C00, "bfloat16": 0x7F80})
"""The bits of infinity, to which numbers that are too large for a type are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFormat:
    """How vectors are written; the fields are the request's.

    Raises:
        InputError: a type that is not served.
    """

    encoding_format: str = "float"
    embed_dtype: str = "float32"
    endianness: str = "native"

    def __post_init__(self) -> None:
        if self.embed_dtype not in _CASTS:
            raise InputError(
                f"embed_dtype {self.embed_dtype} is not supported: its 8 bits would need a scale that the API has no "
                f"field for. Supported are {', '.join(_CASTS)}.",
                parameter="embed_dtype",
                value=self.embed_dtype,
            )

    @property
    def is_binary(self) -> bool:
        """Whether the answer's body is raw bytes."""
        return self.encoding_format in ("bytes", "bytes_only")

    def encode(self, values: Floats) -> Any:
        """Return an array as a field of a JSON answer: numbers, or base64."""
        return encode_floats(values) if self.encoding_format == "float" else encode_base64(self.encode_bytes(values))

    def encode_bytes(self, values: Floats) -> bytes:
        """Return an array's numbers, row after row.

        Raises:
            InputError: a number is too large for the type.
            SessionError: a number is not finite.
        """
        check_finite(values)
        cast_values = _CASTS[self.embed_dtype](np.ascontiguousarray(values))
        self._check_range(cast_values)
        if self.endianness not in ("native", sys.byteorder):
            cast_values = cast_values.byteswap()
        return cast_values.tobytes()

    def _check_range(self, values: NDArray[Any]) -> None:
        infinite = _INFINITE.get(self.embed_dtype)
        if infinite is not None and np.any((values.view(np.uint16) & 0x7FFF) == infinite):
            raise InputError(
                f"the answer holds a number that is too large for {self.embed_dtype}; ask for embed_dtype float32",
                parameter="embed_dtype",
                value=self.embed_dtype,
            )


@lru_cache(maxsize=64)
def build_wire(encoding_format: str, embed_dtype: str, endianness: str) -> WireFormat:
    """Return how vectors are written; equal ones are one object."""
    return WireFormat(encoding_format=encoding_format, embed_dtype=embed_dtype, endianness=endianness)


def check_finite(values: Any) -> None:
    """Check what is about to leave: raw answers are checked when they come in, what is made of them here.

    Raises:
        SessionError: NaN or infinity, which JSON has no numbers for and no client expects.
    """
    if not np.isfinite(values).all():
        raise SessionError("a finished answer holds NaN or infinity")


def encode_floats(values: Floats) -> Any:
    """Return an array as JSON that is put into an answer as it is: the shortest numbers that read as the same float32.

    Without a Python object a number it takes a third of the time, and the text is half as long.

    Raises:
        SessionError: a number is not finite.
    """
    check_finite(values)
    return cast("list[Any]", msgspec.Raw(orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)))


def encode_sparse(embedding: SparseEmbedding) -> Any:
    """Return each weight with its index, as JSON that is put into an answer as it is.

    Raises:
        SessionError: a number is not finite.
    """
    check_finite(embedding.values)
    numbers = orjson.loads(orjson.dumps(embedding.values, option=orjson.OPT_SERIALIZE_NUMPY))
    indices = embedding.indices.tolist()
    pairs = [{"index": index, "value": value} for index, value in zip(indices, numbers, strict=True)]
    return cast("list[Any]", msgspec.Raw(orjson.dumps(pairs)))


def encode_base64(data: bytes) -> str:
    """Return bytes in base64."""
    return b64encode(data).decode("ascii")


def encode_bits(values: Floats, *, signed: bool) -> list[int]:
    """Return the signs of an embedding as bytes of eight, as Cohere defines ``binary`` and ``ubinary``.

    A bit is 1 where the number is at least 0; the first number is a byte's highest bit. Signed bytes are the unsigned
    ones less 128.

    Args:
        values: (embedding_size,).
        signed: Whether bytes run from -128 to 127.

    Raises:
        InputError: a size that is no multiple of 8.
        SessionError: a number is not finite.
    """
    check_finite(values)
    if len(values) % 8:
        raise InputError(
            f"Embedding dimension must be a multiple of 8 for binary embedding types, but got {len(values)}.",
            parameter="embedding_types",
            value=len(values),
        )
    packed = np.packbits(values >= 0)
    codes: list[int] = (packed.astype(np.int16) - 128 if signed else packed).tolist()
    return codes


LITTLE_FLOAT32: Final = WireFormat(encoding_format="base64", endianness="little")
"""Cohere's base64."""
