"""Embeddings in fewer bits: int8, uint8 and binary codes, as sentence-transformers defines them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError

Array: TypeAlias = NDArray[Any]

FEW_ROWS: Final = 100
"""Ranges of fewer rows than this are warned of."""

_BLOCK_ELEMENTS: Final = 1 << 20
_LEVELS: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class _Precision:
    """How one precision is made: ``encode`` takes rows (num_rows, dim) and, where it uses them, ranges (2, dim)."""

    dtype: type[np.generic]
    encode: Callable[[Array, Array | None], Array]
    takes_ranges: bool = False
    packs_bits: bool = False


def _to_float32(rows: Array, ranges: Array | None) -> Array:
    with np.errstate(over="ignore"):
        return rows.astype(np.float32)


def _to_levels(rows: Array, ranges: Array | None) -> Array:
    """Cut each dimension's range into 255 steps; return which a value lies in, 0 to 255, as floats."""
    assert ranges is not None
    starts = ranges[0]
    steps = (ranges[1] - starts) / _LEVELS
    steps = np.where(steps == 0, 1, steps)
    # A value far outside of a narrow range overflows here, and is clipped like any other outside.
    with np.errstate(over="ignore"):
        levels: Array = np.clip(np.floor((rows - starts) / steps), 0, _LEVELS)
    return levels


def _to_bits(rows: Array) -> Array:
    return np.packbits(rows > 0, axis=-1)


PRECISIONS: Final[Mapping[str, _Precision]] = MappingProxyType(
    {
        "float32": _Precision(dtype=np.float32, encode=_to_float32),
        "int8": _Precision(
            dtype=np.int8,
            encode=lambda rows, ranges: (_to_levels(rows, ranges) - 128).astype(np.int8),
            takes_ranges=True,
        ),
        "uint8": _Precision(
            dtype=np.uint8, encode=lambda rows, ranges: _to_levels(rows, ranges).astype(np.uint8), takes_ranges=True
        ),
        "binary": _Precision(
            dtype=np.int8,
            encode=lambda rows, ranges: (_to_bits(rows).astype(np.int16) - 128).astype(np.int8),
            packs_bits=True,
        ),
        "ubinary": _Precision(dtype=np.uint8, encode=lambda rows, ranges: _to_bits(rows), packs_bits=True),
    }
)
"""What embeddings can be turned into."""


def quantize_embeddings(
    embeddings: ArrayLike | Sequence[Array],
    precision: str,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
) -> Array | list[Array]:
    """Turn embeddings into a smaller precision; the integers are those of sentence-transformers' function.

    Codes of int8 and uint8 can be compared only if their ranges are the same: compute ranges once from many embeddings
    (``calibrate_ranges``), keep them (``numpy.save``) and pass them for queries and documents.

    Args:
        embeddings: (num_embeddings, dim) or (dim,), floating point; or a list of matrices (num_tokens, dim), which
            share their ranges.
        precision: ``float32``; ``int8`` or ``uint8``: each value as one of 256 levels of its dimension's range, values
            outside taken as the range's end; ``binary`` or ``ubinary``: one bit a value, set above zero, eight to a
            byte, the last byte filled up with zero bits.
        ranges: (2, dim), the least and the greatest value of each dimension. Used by int8 and uint8 only.
        calibration_embeddings: (num_calibration, dim) embeddings whose ranges are taken when ``ranges`` is None; the
            ranges of ``embeddings`` themselves are when this is None too, with a warning if they are few.

    Returns:
        A new array of the embeddings' shape, for binary precisions with ceil(dim / 8) bytes a row; a list of them for a
        list of matrices.

    Raises:
        InputError: an unknown precision, embeddings that are integers already, NaN or infinity, a shape that does not
            fit, or a lone embedding without ranges.
    """
    row = _find_precision(precision)
    if isinstance(embeddings, list | tuple) and _are_matrices(embeddings):
        matrices = [_check_embeddings(matrix, "embeddings") for matrix in embeddings]
        # Empty matrices have no range, and need none.
        filled = [matrix for matrix in matrices if matrix.size]
        shared = _choose_ranges(filled, precision, ranges, calibration_embeddings) if filled else None
        return [_quantize(matrix, row, shared) for matrix in matrices]
    if isinstance(embeddings, list) and not embeddings:
        return []
    array = _check_embeddings(embeddings, "embeddings")
    rows = np.atleast_2d(array)
    chosen = _choose_ranges([rows], precision, ranges, calibration_embeddings) if rows.size else None
    quantized = _quantize(rows, row, chosen)
    return quantized if array.ndim == 2 else quantized[0]


def calibrate_ranges(embeddings: ArrayLike) -> NDArray[np.float32]:
    """Return the least and the greatest value of each dimension, to be passed as ``ranges``.

    Args:
        embeddings: (num_embeddings, dim), at least two; the more, the better the ranges fit other embeddings.

    Returns:
        (2, dim).

    Raises:
        InputError: fewer than two embeddings, or embeddings that cannot be quantized.
    """
    rows = np.atleast_2d(_check_embeddings(embeddings, "calibration_embeddings"))
    if len(rows) < 2:
        raise InputError(
            f"ranges need at least two embeddings, got {len(rows)}; pass a representative set of them",
            parameter="calibration_embeddings",
        )
    return _measure([rows])


def _find_precision(precision: str) -> _Precision:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError(
            f"Precision {precision!r} is not supported; choose one of {list(PRECISIONS)}",
            parameter="precision",
            value=precision,
        )
    return PRECISIONS[precision]


def _are_matrices(embeddings: Sequence[object]) -> bool:
    return len(embeddings) > 0 and getattr(embeddings[0], "ndim", None) == 2


def _check_embeddings(embeddings: object, parameter: str) -> Array:
    """Return embeddings as a floating-point array (num_embeddings, dim) or (dim,), every value finite."""
    try:
        array = np.asarray(embeddings)
    except ValueError as error:
        raise InputError(f"{parameter} are no array: {error}", parameter=parameter) from error
    if array.dtype in (np.int8, np.uint8):
        raise InputError(
            f"{parameter} are {array.dtype} already; quantize the floating-point embeddings", parameter=parameter
        )
    if array.dtype.kind not in "fiu":
        raise InputError(f"{parameter} must be numbers, not {array.dtype}", parameter=parameter)
    if array.ndim not in (1, 2) or array.shape[-1] == 0:
        raise InputError(
            f"{parameter} must be (num_embeddings, dim) or (dim,), got {array.shape}; "
            "pass token embeddings of several texts as a list of matrices",
            parameter=parameter,
            value=array.shape,
        )
    for start, block in _blocks(np.atleast_2d(array)):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{parameter} hold NaN or infinity (row {start + int(np.argmin(finite))})", parameter=parameter
            )
    return array


def _choose_ranges(
    matrices: Sequence[Array], precision: str, ranges: ArrayLike | None, calibration: ArrayLike | None
) -> Array | None:
    """Return the ranges that are given, else those of the calibration embeddings, else those of the matrices."""
    if not PRECISIONS[precision].takes_ranges:
        return None
    chosen = _check_ranges(_find_ranges(matrices, precision, ranges, calibration))
    for matrix in matrices:
        if matrix.shape[1] != chosen.shape[1]:
            raise InputError(
                f"the ranges are of {chosen.shape[1]} dimensions, the embeddings of {matrix.shape[1]}",
                parameter="ranges",
                value=chosen.shape,
            )
    return chosen


def _find_ranges(
    matrices: Sequence[Array], precision: str, ranges: ArrayLike | None, calibration: ArrayLike | None
) -> ArrayLike:
    if ranges is not None:
        return ranges
    return _measure_themselves(matrices, precision) if calibration is None else calibrate_ranges(calibration)


def _measure_themselves(matrices: Sequence[Array], precision: str) -> NDArray[np.float32]:
    num_rows = sum(map(len, matrices))
    if num_rows == 1:
        raise InputError(
            f"{precision} ranges cannot be computed from one embedding: call quantize_embeddings with ranges or "
            "calibration_embeddings from a representative set",
            parameter="ranges",
        )
    if num_rows < FEW_ROWS:
        warnings.warn(
            f"{precision} ranges computed from only {num_rows} embeddings; pass ranges or calibration_embeddings from "
            "a representative set, so that other embeddings get comparable codes",
            UserWarning,
            stacklevel=5,
        )
    return _measure(matrices)


def _measure(matrices: Sequence[Array]) -> NDArray[np.float32]:
    widths = {matrix.shape[1] for matrix in matrices}
    if len(widths) > 1:
        raise InputError(f"the matrices differ in their dimensions: {sorted(widths)}", parameter="embeddings")
    lowest = np.min([matrix.min(axis=0) for matrix in matrices], axis=0)
    highest = np.max([matrix.max(axis=0) for matrix in matrices], axis=0)
    with np.errstate(over="ignore"):
        return np.vstack((lowest, highest)).astype(np.float32)


def _check_ranges(ranges: ArrayLike) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(ranges).astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"ranges are no array of numbers: {error}", parameter="ranges") from error
    if array.ndim != 2 or len(array) != 2:
        raise InputError(
            f"ranges must be (2, dim), the least and the greatest value of each dimension, got {array.shape}",
            parameter="ranges",
            value=array.shape,
        )
    with np.errstate(over="ignore", invalid="ignore"):
        widths = array[1] - array[0]
    # Written so that NaN fails, too.
    if not ((widths >= 0) & np.isfinite(widths)).all():
        raise InputError(
            "ranges must be finite in float32, the least value (row 0) not above the greatest (row 1)",
            parameter="ranges",
        )
    return array


def _quantize(rows: Array, precision: _Precision, ranges: Array | None) -> Array:
    width = -(-rows.shape[1] // 8) if precision.packs_bits else rows.shape[1]
    quantized: Array = np.empty((len(rows), width), dtype=precision.dtype)
    for start, block in _blocks(rows):
        quantized[start : start + len(block)] = precision.encode(block, ranges)
    if not np.isfinite(quantized).all():
        raise InputError("embeddings hold values outside of float32", parameter="embeddings")
    return quantized


def _blocks(rows: Array) -> Iterator[tuple[int, Array]]:
    """Yield blocks of rows with their first index, so that intermediate values stay small."""
    step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]
