"""MaxSim, the score of late interaction: for each query vector its best dot product with a document's, all added up.

Everything runs in blocks of document rows, side by side on all cores: one matrix product, the maxima of each document's
rows, their sum. A block is multiplied in slabs of a fixed number of rows, filled up with zeros, because BLAS adds in
another order when shapes differ; so the bits of a pair's score do not depend on the other documents.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.pipeline import run_side_by_side

EMPTY_DOCUMENT_SCORE: Final = -1e9
"""Score of a document without vectors, below every other: sentence-transformers' value."""

BUFFER_BYTES: Final = 48 * 2**20
"""Memory of all blocks under way together, where one block fits into it."""

BLOCK_BYTES: Final = 3 * 2**19
"""Memory of one block: it stays in a core's cache."""

SLAB_ROWS: Final = 64
"""Document rows that one matrix product has; a product this small runs on the core that asks for it."""

QUERY_ROWS: Final = 16
"""Queries are filled up to a multiple of this, so that every tile of BLAS is a whole one."""

Rows: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Block:
    """Documents that are scored together against one query: ``indices`` of documents, ``places`` of their scores."""

    query: int
    indices: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Packed:
    """Documents that follow each other in one array (num_rows, size)."""

    rows: Rows
    starts: NDArray[np.int64]

    def take(self, indices: Sequence[int], start: int, stop: int, buffer: Rows) -> Rows:
        """Return rows ``start`` to ``stop`` of neighbouring documents and more, up to whole slabs."""
        first = int(self.starts[indices[0]])
        padded = _padded(stop - start, SLAB_ROWS)
        if first + start + padded <= len(self.rows):
            return self.rows[first + start : first + start + padded]
        buffer[: stop - start] = self.rows[first + start : first + stop]
        buffer[stop - start : padded] = 0
        return buffer[:padded]


@dataclass(frozen=True, slots=True)
class _Listed:
    """Documents in arrays of their own."""

    arrays: Sequence[Rows]

    def take(self, indices: Sequence[int], start: int, stop: int, buffer: Rows) -> Rows:
        """Copy the documents' rows into ``buffer``; ``start`` and ``stop`` count in a lone one."""
        padded = _padded(stop - start, SLAB_ROWS)
        if len(indices) == 1:
            buffer[: stop - start] = self.arrays[indices[0]][start:stop]
        else:
            np.concatenate([self.arrays[i] for i in indices], out=buffer[: stop - start], casting="same_kind")
        buffer[stop - start : padded] = 0
        return buffer[:padded]


def maxsim(
    query: ArrayLike,
    documents: Sequence[ArrayLike] | NDArray[np.floating],
    lengths: Sequence[int] | NDArray[np.integer] | None = None,
    *,
    mean: bool = False,
) -> Rows:
    """Score one query against many documents.

    Beside the arguments and the answer it takes at most 64 MiB (for vectors of up to 16,384 values).

    Args:
        query: (num_query_vectors, size).
        documents: One array (num_vectors, size) a document; or all in one array, (num_documents, num_vectors, size), or
            with ``lengths`` one after the other, (total_vectors, size), which saves copying them.
        lengths: Vectors of each document of an array that has them one after the other.
        mean: Divide by the number of query vectors ("meanmaxsim").

    Returns:
        (num_documents,). Each score's bits are those that the document has alone.

    Raises:
        InputError: arrays of other shapes, or lengths that do not add up.
    """
    matrix = _as_matrix(query, "query")
    source, sizes = _arrange(documents, lengths, matrix.shape[1])
    groups = [(0, range(len(sizes)), range(len(sizes)))]
    return _score([matrix], source, sizes, groups, mean=mean)


def maxsim_pairs(
    queries: Sequence[ArrayLike],
    documents: Sequence[ArrayLike],
    pairs: Sequence[tuple[int, int]],
    *,
    mean: bool = False,
) -> Rows:
    """Score pairs of queries and documents; memory as of ``maxsim``.

    Args:
        queries: One array (num_query_vectors, size) a query.
        documents: One array (num_vectors, size) a document.
        pairs: Indices of a query and of a document each.
        mean: Divide by the number of the query's vectors.

    Returns:
        (num_pairs,). Each score's bits are those that the pair has alone.

    Raises:
        InputError: arrays of other shapes.
    """
    matrices = [_as_matrix(query, f"query {index}") for index, query in enumerate(queries)]
    if not matrices or not pairs:
        return np.zeros(len(pairs), dtype=np.float32)
    size = matrices[0].shape[1]
    for index, matrix in enumerate(matrices):
        _check_size(matrix.shape[1], size, f"query {index}", "query 0")
    source, sizes = _arrange(documents, None, size)
    by_query: dict[int, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(place)
    groups = [(query, [pairs[place][1] for place in places], places) for query, places in by_query.items()]
    return _score(matrices, source, sizes, groups, mean=mean)


@dataclass(slots=True)
class _Scorer:
    """Scores blocks; the threads that share it take turns with the buffers."""

    queries: Sequence[Rows]
    source: _Packed | _Listed
    sizes: NDArray[np.int64]
    block_rows: int
    mean: bool
    scores: Rows
    _buffers: list[tuple[Rows, Rows]] = field(default_factory=list)

    def run(self, block: _Block) -> None:
        """Score the documents of one block into ``scores``."""
        query = self.queries[block.query]
        buffers = self._buffers.pop() if self._buffers else self._new_buffers()
        maxima = self._maxima(block, _query_columns(query), buffers)[:, : len(query)]
        self._buffers.append(buffers)
        # A float64 copy first: a sum that converts on the way would cut rows at the borders of numpy's buffer.
        total = maxima.astype(np.float64).sum(axis=1)
        # Adding zero turns -0.0, which depends on the order of the maxima, into 0.0.
        self.scores[list(block.places)] = (total / len(query) if self.mean else total) + 0.0

    def _new_buffers(self) -> tuple[Rows, Rows]:
        """Return room for a block's rows and for their products."""
        num_columns = max(_padded(len(query), QUERY_ROWS) for query in self.queries)
        rows = np.empty((self.block_rows, self.queries[0].shape[1]), dtype=np.float32)
        return rows, np.empty(self.block_rows * num_columns, dtype=np.float32)

    def _maxima(self, block: _Block, columns: Rows, buffers: tuple[Rows, Rows]) -> Rows:
        """Return the best product of each query vector with each document, (num_documents, num_columns)."""
        sizes = self.sizes[list(block.indices)]
        num_rows = int(sizes.sum())
        if num_rows <= self.block_rows:
            products = self._products(block, 0, num_rows, columns, buffers)
            maxima: Rows = np.maximum.reduceat(products, np.cumsum(sizes) - sizes, axis=0)
            return maxima
        starts = range(0, num_rows, self.block_rows)
        parts = ((start, min(start + self.block_rows, num_rows)) for start in starts)
        best = [self._products(block, *part, columns, buffers).max(axis=0) for part in parts]
        return np.max(best, axis=0, keepdims=True)

    def _products(self, block: _Block, start: int, stop: int, columns: Rows, buffers: tuple[Rows, Rows]) -> Rows:
        """Multiply rows ``start`` to ``stop`` of the block with the query, slab by slab: (num_rows, num_columns)."""
        taken = self.source.take(block.indices, start, stop, buffers[0])
        size, num_columns = columns.shape
        products = buffers[1][: len(taken) * num_columns].reshape(-1, SLAB_ROWS, num_columns)
        np.matmul(taken.reshape(-1, SLAB_ROWS, size), columns, out=products)
        return products.reshape(-1, num_columns)[: stop - start]


def _score(
    queries: Sequence[Rows],
    source: _Packed | _Listed,
    sizes: NDArray[np.int64],
    groups: Sequence[tuple[int, Sequence[int], Sequence[int]]],
    *,
    mean: bool,
) -> Rows:
    """Score groups of (query, documents, places of their scores); ``sizes`` are the documents' numbers of vectors."""
    widest = max(_padded(len(query), QUERY_ROWS) for query in queries)
    # A row of a block: the document's vector, its products, and where documents are short, their maxima in float64 too.
    row_bytes = 4 * (queries[0].shape[1] + 4 * widest)
    block_rows = max(SLAB_ROWS, BLOCK_BYTES // row_bytes // SLAB_ROWS * SLAB_ROWS)
    scores = np.zeros(sum(len(places) for _, _, places in groups), dtype=np.float32)
    _score_empty(scores, queries, sizes, groups, mean=mean)
    blocks = [block for group in groups for block in _cut(*group, sizes, block_rows) if len(queries[group[0]])]
    scorer = _Scorer(queries, source, sizes, block_rows, mean, scores)
    runs = min(read_cpu_info().num_cores, max(1, BUFFER_BYTES // (block_rows * row_bytes)))
    run_side_by_side(blocks, scorer.run, runs=runs)
    return scores


def _score_empty(
    scores: Rows,
    queries: Sequence[Rows],
    sizes: NDArray[np.int64],
    groups: Sequence[tuple[int, Sequence[int], Sequence[int]]],
    *,
    mean: bool,
) -> None:
    """Give documents without vectors their score, with one warning."""
    num_empty = 0
    for query, indices, places in groups:
        empty = [place for index, place in zip(indices, places, strict=True) if not sizes[index]]
        scores[empty] = EMPTY_DOCUMENT_SCORE / (max(1, len(queries[query])) if mean else 1)
        num_empty += len(empty)
    if num_empty:
        message = f"{num_empty} documents have no vectors; they score {EMPTY_DOCUMENT_SCORE:.0e}, below every other"
        # The caller of maxsim or maxsim_pairs.
        warnings.warn(message, UserWarning, stacklevel=4)


def _cut(
    query: int, indices: Sequence[int], places: Sequence[int], sizes: NDArray[np.int64], block_rows: int
) -> Iterator[_Block]:
    """Cut documents, those without vectors left out, into blocks of at most ``block_rows`` rows or of one document."""
    taken: list[tuple[int, int]] = []
    room = block_rows
    for index, place in zip(indices, places, strict=True):
        size = int(sizes[index])
        if taken and size > room:
            yield _Block(query, *map(tuple, zip(*taken, strict=True)))
            taken, room = [], block_rows
        if size:
            taken.append((index, place))
            room -= size
    if taken:
        yield _Block(query, *map(tuple, zip(*taken, strict=True)))


def _query_columns(query: Rows) -> Rows:
    """Return the query's vectors as columns, (size, num_columns), with columns of zeros up to whole tiles."""
    columns = np.zeros((query.shape[1], _padded(len(query), QUERY_ROWS)), dtype=np.float32)
    columns[:, : len(query)] = query.T
    return columns


def _padded(number: int, step: int) -> int:
    return -(-number // step) * step


def _arrange(
    documents: Sequence[ArrayLike] | NDArray[np.floating],
    lengths: Sequence[int] | NDArray[np.integer] | None,
    size: int,
) -> tuple[_Packed | _Listed, NDArray[np.int64]]:
    """Return where the documents' rows come from, and how many each has."""
    if lengths is not None or (isinstance(documents, np.ndarray) and documents.ndim == 3):
        return _pack(np.asarray(documents), lengths, size)
    arrays = [_as_matrix(document, f"document {index}") for index, document in enumerate(documents)]
    for index, array in enumerate(arrays):
        _check_size(array.shape[1], size, f"document {index}", "the query")
    return _Listed(arrays), np.array([len(array) for array in arrays], dtype=np.int64)


def _pack(
    array: NDArray[np.floating], lengths: Sequence[int] | NDArray[np.integer] | None, size: int
) -> tuple[_Packed, NDArray[np.int64]]:
    if lengths is None:
        lengths = np.full(array.shape[0], array.shape[1])
        array = array.reshape(-1, array.shape[2])
    rows, sizes = _as_matrix(array, "documents"), np.asarray(lengths, dtype=np.int64)
    _check_size(rows.shape[1], size, "documents", "the query")
    if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != len(rows):
        raise InputError(
            f"lengths must be one number a document, together the {len(rows)} rows of documents; they add up to "
            f"{sizes.sum()}",
            parameter="lengths",
        )
    return _Packed(rows, np.cumsum(sizes) - sizes), sizes


def _as_matrix(value: ArrayLike, name: str) -> Rows:
    """Return vectors in float32, without a copy where they have it."""
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{name} must be an array of numbers (num_vectors, size), got the shape {array.shape} of {array.dtype}",
            parameter=name.split(" ", maxsplit=1)[0],
        )
    return array.astype(np.float32, copy=False)


def _check_size(size: int, expected: int, name: str, other: str) -> None:
    if size != expected:
        raise InputError(
            f"{name} has vectors of {size} values, {other} has {expected}", parameter=name.split(" ", maxsplit=1)[0]
        )
