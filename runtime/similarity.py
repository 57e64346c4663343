"""Similarity of embeddings by the names of sentence-transformers: the higher, the more alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.maxsim import maxsim, maxsim_pairs
from poolgraph.runtime.sparse import MIN_NORM

Array: TypeAlias = NDArray[Any]
Matrices: TypeAlias = Array | Sequence[Array]

_TILE_ROWS, _TILE_COLUMNS = 512, 2048
_TILE_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class _Similarity:
    """One function: ``matrix`` takes (n, dim) and (m, dim) to (n, m), ``pairs`` twice (n, dim) in float64 to (n,)."""

    matrix: Callable[[Array, Array], Array]
    pairs: Callable[[Array, Array], Array]


def _cosine_matrix(first: Array, second: Array) -> Array:
    return _dot_matrix(_unit(first), _unit(second))


def _dot_matrix(first: Array, second: Array) -> Array:
    product: Array = first @ second.T
    return product


def _euclidean_matrix(first: Array, second: Array) -> Array:
    """Expand the squared distance into products, in float64: in float32 near vectors would lose all their digits."""

    def tile(rows: Array, columns: Array) -> Array:
        left, right = rows.astype(np.float64), columns.astype(np.float64)
        squared = np.square(left).sum(1)[:, None] + np.square(right).sum(1) - 2 * (left @ right.T)
        distance: Array = np.sqrt(np.maximum(squared, 0))
        return -distance

    return _by_tiles(first, second, _TILE_ROWS, _TILE_COLUMNS, tile)


def _manhattan_matrix(first: Array, second: Array) -> Array:
    columns = max(1, min(len(second), _TILE_ELEMENTS // first.shape[1]))
    rows = max(1, _TILE_ELEMENTS // (first.shape[1] * columns))
    return _by_tiles(first, second, rows, columns, lambda a, b: -np.abs(a[:, None] - b).sum(-1))


def _cosine_pairs(first: Array, second: Array) -> Array:
    return _dot_pairs(_unit(first), _unit(second))


def _dot_pairs(first: Array, second: Array) -> Array:
    product: Array = (first * second).sum(-1)
    return product


SIMILARITY_FUNCTIONS: Final[Mapping[str, _Similarity]] = MappingProxyType(
    {
        "cosine": _Similarity(matrix=_cosine_matrix, pairs=_cosine_pairs),
        "dot": _Similarity(matrix=_dot_matrix, pairs=_dot_pairs),
        "euclidean": _Similarity(matrix=_euclidean_matrix, pairs=lambda a, b: -np.sqrt(np.square(a - b).sum(-1))),
        "manhattan": _Similarity(matrix=_manhattan_matrix, pairs=lambda a, b: -np.abs(a - b).sum(-1)),
    }
)
"""Similarity of single vectors; distances are negative."""

LATE_INTERACTION_FUNCTIONS: Final[Mapping[str, bool]] = MappingProxyType({"maxsim": False, "meanmaxsim": True})
"""Similarity of matrices of token vectors, and whether it is divided by the number of the query's vectors."""


def similarity_matrix(first: ArrayLike, second: ArrayLike, name: str = "cosine") -> Array:
    """Compare each embedding of one collection with each of another.

    Args:
        first: (n, dim), or (dim,) for one.
        second: (m, dim), or (dim,) for one.
        name: A key of SIMILARITY_FUNCTIONS.

    Returns:
        (n, m) float32, or float64 where an input is; beside it and copies of the inputs, memory stays bounded.

    Raises:
        InputError: an unknown name, shapes that do not fit, NaN or infinity, or values too large for their products.
    """
    function = _find_function(name)
    left, right = (
        np.atleast_2d(_check_vectors(first, "embeddings1")),
        np.atleast_2d(_check_vectors(second, "embeddings2")),
    )
    if left.shape[1] != right.shape[1]:
        raise InputError(
            f"embeddings1 have {left.shape[1]} dimensions, embeddings2 {right.shape[1]}",
            parameter="embeddings2",
            value=right.shape,
        )
    dtype = np.result_type(left, right)
    with np.errstate(over="ignore", invalid="ignore"):
        return _check_result(function.matrix(left.astype(dtype, copy=False), right.astype(dtype, copy=False)))


def similarity_pairs(first: ArrayLike, second: ArrayLike, name: str = "cosine") -> Array:
    """Compare embeddings in pairs: row i of one collection with row i of the other.

    Args:
        first: (n, dim), or (dim,) for one.
        second: The same shape.
        name: A key of SIMILARITY_FUNCTIONS.

    Returns:
        (n,), or () for one pair, float32, or float64 where an input is; a pair's bits do not depend on the other pairs.

    Raises:
        InputError: as ``similarity_matrix``.
    """
    function = _find_function(name)
    left, right = _check_vectors(first, "embeddings1"), _check_vectors(second, "embeddings2")
    if left.shape != right.shape:
        raise InputError(
            f"pairs need embeddings of equal shape, got {left.shape} and {right.shape}; "
            "similarity() compares each with each",
            parameter="embeddings2",
            value=right.shape,
        )
    left_rows, right_rows = np.atleast_2d(left), np.atleast_2d(right)
    answers = np.empty(len(left_rows), dtype=np.result_type(left, right))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(answers), _TILE_ROWS):
            block = slice(start, start + _TILE_ROWS)
            # Contiguous copies: numpy sums strided rows in another order.
            pair = (np.array(rows[block], dtype=np.float64, order="C") for rows in (left_rows, right_rows))
            answers[block] = function.pairs(*pair)
    return _check_result(answers.reshape(left.shape[:-1]))


def maxsim_matrix(queries: Matrices, documents: Matrices, name: str) -> Array:
    """Score each query's token vectors against each document's.

    Args:
        queries: One matrix (num_vectors, size) a query; a lone one; or (n, num_vectors, size), where rows of zeros are
            padding.
        documents: As ``queries``.
        name: A key of LATE_INTERACTION_FUNCTIONS.

    Returns:
        (n, m) float32.

    Raises:
        InputError: arrays of other shapes, NaN or infinity.
    """
    left, right = _split_matrices(queries), _split_matrices(documents)
    scores = np.zeros((len(left), len(right)), dtype=np.float32)
    if not scores.size:
        return scores
    for row, query in zip(scores, left, strict=True):
        row[:] = maxsim(query, right, mean=LATE_INTERACTION_FUNCTIONS[name])
    return _check_result(scores)


def maxsim_of_pairs(queries: Matrices, documents: Matrices, name: str) -> Array:
    """Score query i against document i; arguments and errors as of ``maxsim_matrix``.

    Returns:
        (n,) float32.

    Raises:
        InputError: also where there are more of the ones than of the others.
    """
    left, right = _split_matrices(queries), _split_matrices(documents)
    if len(left) != len(right):
        raise InputError(
            f"pairs need as many queries as documents, got {len(left)} and {len(right)}; "
            "similarity() compares each with each",
            parameter="embeddings2",
            value=len(right),
        )
    pairs = [(index, index) for index in range(len(left))]
    return _check_result(maxsim_pairs(left, right, pairs, mean=LATE_INTERACTION_FUNCTIONS[name]))


def _split_matrices(embeddings: Any) -> list[Any]:
    ndim = getattr(embeddings, "ndim", None)
    if ndim == 3:
        return [matrix[matrix.any(axis=-1)] for matrix in np.asarray(embeddings)]
    if ndim == 2:
        return [embeddings]
    if ndim == 0 or not isinstance(embeddings, Iterable):
        raise InputError(
            f"embeddings must be a list of matrices (num_vectors, size), not {type(embeddings).__name__}",
            parameter="embeddings",
            value=embeddings,
        )
    return list(embeddings)


def _find_function(name: str) -> _Similarity:
    if not isinstance(name, str) or name not in SIMILARITY_FUNCTIONS:
        raise InputError(
            f"similarity function {name!r} is unknown; choose one of {list(SIMILARITY_FUNCTIONS)}",
            parameter="similarity_fn_name",
            value=name,
        )
    return SIMILARITY_FUNCTIONS[name]


def _check_vectors(embeddings: ArrayLike, parameter: str) -> Array:
    """Return finite embeddings as float32, or float64 where they are, (n, dim) or (dim,)."""
    try:
        array = np.asarray(embeddings)
    except ValueError as error:
        raise InputError(f"{parameter} are no array: {error}", parameter=parameter) from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{parameter} must be numbers, not {array.dtype}", parameter=parameter)
    if array.ndim not in (1, 2) or array.shape[-1] == 0:
        raise InputError(
            f"{parameter} must be (num_embeddings, dim) or (dim,), got {array.shape}",
            parameter=parameter,
            value=array.shape,
        )
    # Codes of int8 and half precision are compared in float32: their own products would wrap or round.
    wide: Array = array.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(wide).all():
        raise InputError(f"{parameter} hold NaN or infinity", parameter=parameter)
    return wide


def _check_result(values: Array) -> Array:
    if not np.isfinite(values).all():
        raise InputError("the embeddings hold NaN, infinity or values too large to be compared")
    return values


def _unit(rows: Array) -> Array:
    """Divide rows by their norm, computed in float64 so that it does not overflow; rows of zeros stay zeros."""
    norm = _check_result(np.sqrt(np.square(rows, dtype=np.float64).sum(-1, keepdims=True)))
    result: Array = (rows / np.maximum(norm, MIN_NORM)).astype(rows.dtype, copy=False)
    return result


def _by_tiles(first: Array, second: Array, rows: int, columns: int, compute: Callable[[Array, Array], Array]) -> Array:
    """Compute (n, m) tile by tile of at most (rows, columns), so that intermediate values stay small."""
    answers: Array = np.empty((len(first), len(second)), dtype=first.dtype)
    for top in range(0, len(first), rows):
        for left in range(0, len(second), columns):
            tile = slice(top, top + rows), slice(left, left + columns)
            answers[tile] = compute(first[tile[0]], second[tile[1]])
    return answers
