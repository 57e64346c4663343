"""MaxSim, the score of late interaction: for each query vector its best dot product with a document's, all added up.

Documents are scored in blocks, side by side on all cores: their vectors are copied together, multiplied with the
query's, and the best products of each document added up. BLAS adds in an order that depends on the shapes, and on some
processors on the place of a row in the matrix; so each document starts a slab of its own, and all slabs have one shape.
A pair's score thus has the same bits beside any other documents.
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
from poolgraph.runtime.maxsim_documents import (
    Documents,
    Lengths,
    Vectors,
    arrange_documents,
    check_size,
    check_vectors,
)
from poolgraph.runtime.pipeline import run_side_by_side

EMPTY_DOCUMENT_SCORE: Final = -1e9
"""Score of a document without vectors, below every other: sentence-transformers' value."""

BUFFER_BYTES: Final = 48 * 2**20
"""Memory of all blocks under way together; one block alone may take more."""

BLOCK_BYTES: Final = 3 * 2**19
"""Memory of one block: it stays in a core's cache."""

SLAB_ROWS: Final = 16
"""Document vectors in one matrix product: few are computed in vain at a document's end."""

SLAB_SIZES: Final = (SLAB_ROWS, 8, 4)
"""What a slab may have: each divides SLAB_ROWS, so that documents in a block never need more rows than it has."""

SERIAL_PRODUCTS: Final = 2**18
"""Multiplications up to which OpenBLAS stays on the core that asks; beyond, its threads would fight with ours."""

Rows: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Group:
    """A query, the documents it is scored against, and the places of their scores in the answer."""

    query: int
    documents: Sequence[int]
    places: Sequence[int]


def maxsim(
    query: ArrayLike,
    documents: Sequence[ArrayLike] | Vectors,
    lengths: Lengths | None = None,
    *,
    mean: bool = False,
) -> Rows:
    """Score one query against many documents.

    Beside the arguments and the answer it takes less than 64 MiB, for vectors of up to 16,384 values.

    Args:
        query: (num_query_vectors, size).
        documents: One array (num_vectors, size) a document; or all in one array, (num_documents, num_vectors, size), or
            with ``lengths`` one after the other, (total_vectors, size).
        lengths: Vectors of each document of an array that has them one after the other.
        mean: Divide by the number of query vectors ("meanmaxsim").

    Returns:
        (num_documents,). Each score has the bits that it has without the other documents. A document without vectors
        scores ``EMPTY_DOCUMENT_SCORE``, with a warning.

    Raises:
        InputError: arrays of other shapes, or lengths that do not add up.
    """
    queries = [_check_query(query, "query")]
    source = arrange_documents(documents, lengths, queries[0].shape[1])
    everything = range(len(source.sizes))
    return _score(queries, source, [_Group(0, everything, everything)], mean=mean)


def maxsim_pairs(
    queries: Sequence[ArrayLike],
    documents: Sequence[ArrayLike] | Vectors,
    pairs: Sequence[tuple[int, int]],
    *,
    mean: bool = False,
) -> Rows:
    """Score pairs of queries and documents; memory and scores are those of ``maxsim``.

    Args:
        queries: One array (num_query_vectors, size) a query.
        documents: One array (num_vectors, size) a document, or all as (num_documents, num_vectors, size).
        pairs: Indices of a query and of a document each.
        mean: Divide by the number of the query's vectors.

    Returns:
        (num_pairs,).

    Raises:
        InputError: arrays of other shapes, or an index that there is not.
    """
    checked = [_check_query(query, f"query {index}") for index, query in enumerate(queries)]
    for index, query in enumerate(checked):
        check_size(query.shape[1], checked[0].shape[1], f"query {index}")
    source = arrange_documents(documents, None, checked[0].shape[1] if checked else 0)
    places_of: dict[int, list[int]] = {}
    for place, (query_index, index) in enumerate(pairs):
        if not (0 <= query_index < len(checked) and 0 <= index < len(source.sizes)):
            raise InputError(
                f"pair {place} is {(query_index, index)}, but there are {len(checked)} queries and "
                f"{len(source.sizes)} documents",
                parameter="pairs",
                value=place,
            )
        places_of.setdefault(query_index, []).append(place)
    groups = [_Group(query, [pairs[place][1] for place in places], places) for query, places in places_of.items()]
    return _score(checked, source, groups, mean=mean)


def _score(queries: Sequence[Rows], source: Documents, groups: Sequence[_Group], *, mean: bool) -> Rows:
    scores = np.zeros(sum(len(group.places) for group in groups), dtype=np.float32)
    num_empty = sum(_score_empty(scores, queries, source, group, mean=mean) for group in groups)
    if num_empty:
        message = f"{num_empty} documents have no vectors; they score {EMPTY_DOCUMENT_SCORE:.0e}, below every other"
        # The caller of maxsim or maxsim_pairs.
        warnings.warn(message, UserWarning, stacklevel=3)
    groups = [group for group in groups if len(queries[group.query])]
    if not groups:
        return scores
    size, num_columns = queries[0].shape[1], max(len(queries[group.query]) for group in groups)
    # A row of a block: a document's vector, its products, and their maxima, in float64 too, if it is a whole document.
    row_bytes = 4 * (size + 4 * num_columns)
    block_rows = max(1, BLOCK_BYTES // row_bytes // SLAB_ROWS) * SLAB_ROWS
    scorer = _Scorer(queries, source, block_rows, num_columns, mean, scores)
    blocks = [block for group in groups for block in _cut(group, source.sizes, block_rows)]
    serial = _slab_rows(size, num_columns) * size * num_columns <= SERIAL_PRODUCTS
    runs = min(read_cpu_info().num_cores, max(1, BUFFER_BYTES // (block_rows * row_bytes))) if serial else 1
    run_side_by_side(blocks, scorer.run, runs=runs)
    return scores


def _score_empty(scores: Rows, queries: Sequence[Rows], source: Documents, group: _Group, *, mean: bool) -> int:
    """Give documents without vectors their score; return how many there are."""
    empty = source.sizes[np.asarray(group.documents, dtype=np.int64)] == 0
    divisor = max(1, len(queries[group.query])) if mean else 1
    scores[np.asarray(group.places, dtype=np.int64)[empty]] = EMPTY_DOCUMENT_SCORE / divisor
    return int(empty.sum())


def _cut(group: _Group, sizes: NDArray[np.int64], block_rows: int) -> Iterator[_Group]:
    """Cut a group into blocks of at most ``block_rows`` rows, or of one document that has more."""
    first, room = 0, block_rows
    for index, document in enumerate(group.documents):
        size = _pad(int(sizes[document]), SLAB_ROWS)
        if size > room and index > first:
            yield _Group(group.query, group.documents[first:index], group.places[first:index])
            first, room = index, block_rows
        room -= size
    yield _Group(group.query, group.documents[first:], group.places[first:])


@dataclass(slots=True)
class _Scorer:
    """Scores blocks; the threads that share it take turns with the buffers."""

    queries: Sequence[Rows]
    source: Documents
    block_rows: int
    num_columns: int
    mean: bool
    scores: Rows
    _buffers: list[tuple[Rows, Rows]] = field(default_factory=list)

    def run(self, block: _Group) -> None:
        """Score the documents of one block that have vectors into ``scores``."""
        pairs = zip(block.documents, block.places, strict=True)
        places = {place: self.source[document] for document, place in pairs if self.source.sizes[document]}
        if not places:
            return
        query = self.queries[block.query]
        try:
            buffers = self._buffers.pop()
        except IndexError:
            buffers = self._new_buffers()
        maxima = self._maxima(list(places.values()), query, *buffers)
        self._buffers.append(buffers)
        # A float64 copy first: a sum that converts on the way would cut rows at the borders of numpy's buffer.
        total = maxima.astype(np.float64).sum(axis=1)
        # Adding zero turns -0.0, which depends on the order of the maxima, into 0.0, whatever numpy's sums begin with.
        self.scores[list(places)] = (total / len(query) if self.mean else total) + 0.0

    def _new_buffers(self) -> tuple[Rows, Rows]:
        """Return room for a block's vectors and for their products; zeros, since slabs are multiplied whole."""
        rows = np.zeros((self.block_rows, self.queries[0].shape[1]), dtype=np.float32)
        return rows, np.empty(self.block_rows * self.num_columns, dtype=np.float32)

    def _maxima(self, documents: Sequence[Vectors], query: Rows, rows: Rows, products: Rows) -> Rows:
        """Return the best product of each query vector with each document, (num_documents, num_query_vectors)."""
        if len(documents[0]) <= self.block_rows:
            return _best_products(documents, query, rows, products)
        starts = range(0, len(documents[0]), self.block_rows)
        parts = (documents[0][start : start + self.block_rows] for start in starts)
        best = [_best_products([part], query, rows, products)[0] for part in parts]
        return np.maximum.reduceat(best, [0], axis=0)


def _best_products(documents: Sequence[Vectors], query: Rows, rows: Rows, products: Rows) -> Rows:
    """Multiply documents with the query, slab by slab, and return the maxima (num_documents, num_query_vectors).

    Args:
        documents: Their vectors, which fit into ``rows``.
        query: (num_query_vectors, size).
        rows: Room for the vectors, (block_rows, size).
        products: Room for their products, flat.
    """
    num_columns, size = query.shape
    slab = _slab_rows(size, num_columns)
    # Where each document starts and ends; reduceat's odd answers are of the filling between them.
    bounds: list[int] = []
    stop = 0
    for document in documents:
        bounds += [stop, stop + len(document)]
        rows[stop : stop + len(document)] = document
        stop = _pad(stop + len(document), slab)
    out = products[: stop * num_columns].reshape(-1, slab, num_columns)
    np.matmul(rows[:stop].reshape(-1, slab, size), np.ascontiguousarray(query.T), out=out)
    if bounds[-1] == stop:
        bounds.pop()
    best: Rows = np.maximum.reduceat(out.reshape(-1, num_columns), bounds, axis=0)[::2]
    return best


def _slab_rows(size: int, num_columns: int) -> int:
    """Return how many document vectors one product has: a rule of the query alone, so that all its pairs are alike."""
    serial = SERIAL_PRODUCTS // max(1, size * num_columns)
    return next((rows for rows in SLAB_SIZES if rows <= serial), SLAB_SIZES[-1])


def _pad(number: int, step: int) -> int:
    return -(-number // step) * step


def _check_query(query: ArrayLike, name: str) -> Rows:
    return check_vectors(query, name).astype(np.float32, copy=False)
