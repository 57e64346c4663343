"""Where MaxSim takes the vectors of documents from: arrays of their own, or one array for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError

Vectors: TypeAlias = NDArray[np.floating]
Lengths: TypeAlias = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class PackedDocuments:
    """Documents that follow each other in one array.

    Attributes:
        vectors: (total_vectors, size).
        sizes: Vectors of each document.
        starts: First vector of each document.
    """

    vectors: Vectors
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __getitem__(self, index: int) -> Vectors:
        """Return a document's vectors, (num_vectors, size), in place."""
        start = self.starts[index]
        return self.vectors[start : start + self.sizes[index]]


@dataclass(frozen=True, slots=True)
class ListedDocuments:
    """Documents in arrays (num_vectors, size) of their own; ``sizes`` as of PackedDocuments."""

    arrays: Sequence[Vectors]
    sizes: NDArray[np.int64]

    def __getitem__(self, index: int) -> Vectors:
        """Return a document's vectors, (num_vectors, size), in place."""
        return self.arrays[index]


Documents: TypeAlias = PackedDocuments | ListedDocuments


def arrange_documents(documents: Sequence[ArrayLike] | Vectors, lengths: Lengths | None, size: int) -> Documents:
    """Check documents and say where their vectors are; none is copied.

    Args:
        documents: One array a document, or (num_documents, num_vectors, size), or (total_vectors, size).
        lengths: Vectors of each document, for the last form.
        size: Width that the vectors must have.

    Raises:
        InputError: arrays of other shapes, or lengths that do not add up.
    """
    if lengths is not None:
        return _pack(check_vectors(documents, "documents"), np.asarray(lengths), size)
    arrays = [check_vectors(document, f"document {index}") for index, document in enumerate(documents)]
    for index, array in enumerate(arrays):
        check_size(array.shape[1], size, f"document {index}")
    return ListedDocuments(arrays, np.array([len(array) for array in arrays], dtype=np.int64))


def check_vectors(value: object, name: str) -> Vectors:
    """Return an array (num_vectors, size); raise InputError, with ``name``, where it is none."""
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


def _pack(vectors: Vectors, lengths: NDArray[np.integer], size: int) -> PackedDocuments:
    check_size(vectors.shape[1], size, "documents")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any() or lengths.sum() != len(vectors):
        raise InputError(
            f"lengths must be a whole number a document, in all the {len(vectors)} vectors of documents; got {lengths}",
            parameter="lengths",
        )
    sizes = lengths.astype(np.int64)
    return PackedDocuments(vectors, sizes, np.cumsum(sizes) - sizes)
