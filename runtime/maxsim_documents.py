"""Where MaxSim takes the rows of documents from: arrays of their own, or one array for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError

SLAB_ROWS: Final = 64
"""Document rows that one matrix product has; a product this small runs on the core that asks for it."""

Rows: TypeAlias = NDArray[np.float32]
Lengths: TypeAlias = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class PackedDocuments:
    """Documents that follow each other in one array.

    Attributes:
        rows: (total_vectors, size), of any kind of number.
        sizes: Vectors of each document.
        starts: First row of each document.
    """

    rows: NDArray[np.floating]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]

    def take(self, indices: Sequence[int], start: int, stop: int, buffer: Rows) -> Rows:
        """Return rows ``start`` to ``stop`` of neighbouring documents, filled up to whole slabs with any others.

        They are in place where they can be, else copied into ``buffer``.
        """
        first = int(self.starts[indices[0]]) + start
        count = pad(stop - start, SLAB_ROWS)
        fits = first + count <= len(self.rows)
        if fits and self.rows.dtype == np.float32 and self.rows.flags.c_contiguous:
            return self.rows[first : first + count]
        buffer[: stop - start] = self.rows[first : first + stop - start]
        buffer[stop - start : count] = 0
        return buffer[:count]


@dataclass(frozen=True, slots=True)
class ListedDocuments:
    """Documents in arrays (num_vectors, size) of their own; ``sizes`` as of PackedDocuments."""

    arrays: Sequence[NDArray[np.floating]]
    sizes: NDArray[np.int64]

    def take(self, indices: Sequence[int], start: int, stop: int, buffer: Rows) -> Rows:
        """Copy rows into ``buffer`` and return them, filled up to whole slabs with zeros.

        ``start`` is 0 where there are several documents.
        """
        count = pad(stop - start, SLAB_ROWS)
        if len(indices) == 1:
            buffer[: stop - start] = self.arrays[indices[0]][start:stop]
        else:
            np.concatenate([self.arrays[i] for i in indices], out=buffer[: stop - start], casting="same_kind")
        buffer[stop - start : count] = 0
        return buffer[:count]


Documents: TypeAlias = PackedDocuments | ListedDocuments


def arrange_documents(
    documents: Sequence[ArrayLike] | NDArray[np.floating], lengths: Lengths | None, size: int
) -> Documents:
    """Check documents and say where their rows are; no vector is copied.

    Args:
        documents: One array a document, or (num_documents, num_vectors, size), or (total_vectors, size).
        lengths: Vectors of each document, for the last form.
        size: Width that the vectors must have.

    Raises:
        InputError: arrays of other shapes, or lengths that do not add up.
    """
    if lengths is not None:
        return _pack(check_matrix(documents, "documents"), np.asarray(lengths), size)
    if isinstance(documents, np.ndarray) and documents.ndim == 3 and documents.flags.c_contiguous:
        rows = check_matrix(documents.reshape(-1, documents.shape[2]), "documents")
        return _pack(rows, np.full(documents.shape[0], documents.shape[1]), size)
    arrays = [check_matrix(document, f"document {index}") for index, document in enumerate(documents)]
    for index, array in enumerate(arrays):
        check_size(array.shape[1], size, f"document {index}")
    return ListedDocuments(arrays, np.array([len(array) for array in arrays], dtype=np.int64))


def check_matrix(value: object, name: str) -> NDArray[np.floating]:
    """Return vectors as an array (num_vectors, size); raise InputError, with ``name``, where they are none."""
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{name} must be an array of numbers (num_vectors, size); it is {array.dtype} of shape {array.shape}",
            parameter=name.split(" ", maxsplit=1)[0],
        )
    return array


def check_size(size: int, expected: int, name: str) -> None:
    """Check the width of vectors; raise InputError, with ``name``, where it is not the query's."""
    if size != expected:
        raise InputError(
            f"{name} has vectors of {size} values, the query has vectors of {expected}",
            parameter=name.split(" ", maxsplit=1)[0],
        )


def pad(number: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-number // step) * step


def _pack(rows: NDArray[np.floating], lengths: NDArray[np.integer], size: int) -> PackedDocuments:
    check_size(rows.shape[1], size, "documents")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any() or lengths.sum() != len(rows):
        raise InputError(
            f"lengths must be a whole number a document, in all the {len(rows)} rows of documents; got {lengths}",
            parameter="lengths",
        )
    sizes = lengths.astype(np.int64)
    return PackedDocuments(rows, sizes, np.cumsum(sizes) - sizes)
