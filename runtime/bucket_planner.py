"""Which buckets to compile: chosen from a histogram of lengths, a budget of graphs and a budget of tokens. Pure.

Padded buckets have two parts. *Bulk* buckets hold as many texts of a length as the budget of tokens allows: for many
texts, where what counts is that lengths are close. *Small* ones hold an eighth of that, and so on down to a single text
(the *ladder* of a length): for few texts, which would else pay for many. A third of the graphs is for small ones.

The lengths of each part, its *edges*, are chosen by dynamic programming. With ``weight[l]`` texts of length l, texts
between two neighbouring edges i < j are padded to j, which costs ``sum over l in (i, j] of weight[l] * (j - l)``
tokens, and an edge costs ``graphs[j]`` graphs: one, or as many as its ladder has steps. ``best[g, j] = min over i < j
of best[g - graphs[j], i] + cost(i, j)`` is the least padding of all texts up to j with at most g graphs. The last edge
is the model's limit: every text that the model takes has a bucket.

Packed buckets waste only what is left of their tokens. Their edges are numbers of tokens, and those below the budget
serve a text that comes alone, or the rest of many: the same programme chooses them. Large ones have two forms, for
short texts and for long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.buckets import LENGTH_STEP, Bucket, order_buckets, packed_bucket, round_length

MAX_GRAPHS: Final = 32
"""Default budget: each graph of a base-size model takes a few MB and some tenths of a second of warm-up."""

MAX_BUCKET_TOKENS: Final = 16384
"""Default tokens of the largest bucket: enough for the products of a base-size encoder to fill a large GPU."""

LADDER_STEP: Final = 8

_SLOT_TOKENS: Final = 16
"""Packed buckets have a slot for so many tokens: texts shorter than that on average leave some tokens unused."""

_LONG_TOKENS: Final = 512
"""Packed buckets have few slots for texts longer than this, or many for shorter ones: the attention kernel starts
blocks for ``batch_size`` texts of ``max_length`` tokens, whatever texts there are. For 16,384 tokens of 1,026 texts of
up to 8,192, in 16 heads, it would start a million a layer, of which some ten thousand have anything to do."""

_FEW_TOKENS: Final = 64
"""Large packed buckets have a second form, with a slot for so many tokens: all rows of the answer come back from the
device, of 16,384 tokens of BERT-base 3 MB with a slot for 16."""

_LARGE_TOKENS: Final = 2048
"""Buckets of fewer tokens bring little back."""

_FEW_SHARE: Final = 8
"""One graph in so many is for these."""

_FINEST: Final = 256

_SMALL_SHARE: Final = 3
"""One graph in so many is for few texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketBudget:
    """What buckets may cost.

    Attributes:
        max_model_len: The longest text, in tokens, that some bucket must take.
        max_graphs: Buckets in all: a CUDA graph, with its buffers, each.
        max_batch_tokens: Tokens of a bucket; only a bucket of a single text may have more.
    """

    max_model_len: int
    max_graphs: int = MAX_GRAPHS
    max_batch_tokens: int = MAX_BUCKET_TOKENS

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_graphs", "max_batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", parameter=name, value=getattr(self, name))


def count_lengths(lengths: Sequence[int], max_model_len: int) -> NDArray[np.int64]:
    """Return the histogram of lengths, (max_model_len + 1,): texts of 0, 1, 2, ... tokens; longer ones are cut."""
    cut = np.clip(np.asarray(lengths, dtype=np.int64), 0, max_model_len)
    return np.bincount(cut, minlength=max_model_len + 1).astype(np.int64)


def guess_lengths(max_model_len: int) -> NDArray[np.int64]:
    """Return the histogram where nothing is known, (max_model_len + 1,).

    There are as many texts between 8 and 16 tokens as between 16 and 32, and so on.
    """
    lengths = np.arange(max_model_len + 1)
    weights = np.zeros(max_model_len + 1, dtype=np.int64)
    weights[1:] = np.maximum(1, (1 << 20) // np.maximum(lengths[1:], LENGTH_STEP))
    return weights


def plan_buckets(budget: BucketBudget, layout: str, histogram: NDArray[np.int64] | None = None) -> tuple[Bucket, ...]:
    """Choose buckets.

    Args:
        budget: What they may cost.
        layout: ``padded`` or ``packed``.
        histogram: Number of texts by length, (max_model_len + 1,); None takes ``guess_lengths``.

    Returns:
        At most ``max_graphs`` buckets, largest first: warmed up in this order, memory is allocated once. One of them
        takes a text of ``max_model_len`` tokens.

    Raises:
        InputError: another layout.
    """
    if layout not in _PLANNERS:
        raise InputError(f"layout must be one of {sorted(_PLANNERS)}", parameter="layout", value=layout)
    known = guess_lengths(budget.max_model_len) if histogram is None else histogram
    buckets = _PLANNERS[layout](budget, known)
    return order_buckets(buckets)


def single_bucket(budget: BucketBudget, layout: str) -> Bucket:
    """Return the one bucket of a server that has no plan: the longest text, and as many of them as the tokens allow."""
    length = round_length(budget.max_model_len)
    if layout == "padded":
        return Bucket(max_length=length, batch_size=max(1, budget.max_batch_tokens // length))
    num_tokens = max(length, budget.max_batch_tokens)
    return packed_bucket(num_tokens, budget.max_model_len, max(1, num_tokens // _SLOT_TOKENS))


def batch_ladder(most: int) -> tuple[int, ...]:
    """Return the batch sizes below ``most``, rising: 1, and so on to an eighth of it."""
    sizes = []
    while most > 1:
        most = -(-most // LADDER_STEP)
        sizes.append(most)
    return tuple(sizes[::-1])


def choose_edges(
    lengths: NDArray[np.int64], weights: NDArray[np.int64], graphs: Sequence[int], max_graphs: int
) -> list[int]:
    """Choose edges among the candidates ``lengths`` at the least padding; see the module's docstring.

    Args:
        lengths: Candidates, rising; the last one is always chosen.
        weights: (num_lengths, 2): the texts whose smallest candidate it is, and the tokens of all of them together.
        graphs: Graphs that each candidate costs as an edge.
        max_graphs: Budget; it must suffice for the last candidate.

    Returns:
        Indices of the chosen candidates, rising.
    """
    num_lengths = len(lengths)
    max_graphs = min(max_graphs, sum(graphs))  # what is beyond would take memory and buy nothing
    texts = np.concatenate([[0], np.cumsum(weights[:, 0])]).astype(np.float64)
    tokens = np.concatenate([[0], np.cumsum(weights[:, 1])]).astype(np.float64)
    # best[g, j]: least padding of the first j candidates' texts with at most g graphs, the j-th being an edge.
    best = np.full((max_graphs + 1, num_lengths + 1), np.inf)
    best[:, 0] = 0.0
    origin = np.zeros((max_graphs + 1, num_lengths + 1), dtype=np.int64)
    for stop in range(1, num_lengths + 1):
        edge, price = float(lengths[stop - 1]), graphs[stop - 1]
        cost = edge * (texts[stop] - texts[:stop]) - (tokens[stop] - tokens[:stop])
        if price <= max_graphs:
            totals = best[: max_graphs + 1 - price, :stop] + cost
            origin[price:, stop] = totals.argmin(axis=1)
            best[price:, stop] = totals.min(axis=1)
    return _trace_back(origin, graphs, max_graphs, num_lengths)


def _trace_back(origin: NDArray[np.int64], graphs: Sequence[int], left: int, stop: int) -> list[int]:
    chosen = []
    while stop > 0:
        chosen.append(stop - 1)
        left, stop = left - graphs[stop - 1], int(origin[left, stop])
    return chosen[::-1]


def _gather_candidates(histogram: NDArray[np.int64], last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return candidates and their ``weights``: the lengths of texts, rounded up, and ``last``.

    They are multiples of LENGTH_STEP; long ones of a power of two that is at most 1 in ``_FINEST`` of them, since the
    time that choosing takes grows with the square of their number.
    """
    present = np.flatnonzero(histogram)
    present = present[present > 0]
    steps = np.maximum(LENGTH_STEP, 2 ** np.floor(np.log2(np.maximum(1, present / _FINEST))).astype(np.int64))
    rounded = np.minimum(-(-present // steps) * steps, last)
    lengths = np.union1d(rounded, [last])
    weights = np.zeros((len(lengths), 2), dtype=np.int64)
    places = np.searchsorted(lengths, rounded)
    np.add.at(weights[:, 0], places, histogram[present])
    np.add.at(weights[:, 1], places, histogram[present] * present)
    return lengths, weights


def _plan_padded(budget: BucketBudget, histogram: NDArray[np.int64]) -> list[Bucket]:
    lengths, weights = _gather_candidates(histogram, round_length(budget.max_model_len))
    most = [max(1, budget.max_batch_tokens // int(length)) for length in lengths]
    num_small = budget.max_graphs // _SMALL_SHARE
    # Where graphs are few, the single text goes before the steps above it.
    ladders = [batch_ladder(size)[:num_small] for size in most]
    bulk = choose_edges(lengths, weights, [1] * len(lengths), budget.max_graphs - num_small)
    small = choose_edges(lengths, weights, [len(ladder) for ladder in ladders], num_small)
    sizes = [(edge, most[edge]) for edge in bulk] + [(edge, size) for edge in small for size in ladders[edge]]
    return [Bucket(max_length=int(lengths[edge]), batch_size=size) for edge, size in sizes]


def _plan_packed(budget: BucketBudget, histogram: NDArray[np.int64]) -> list[Bucket]:
    num_few = budget.max_graphs // _FEW_SHARE
    max_graphs = budget.max_graphs - num_few
    last = round_length(budget.max_model_len)
    largest = max(last, budget.max_batch_tokens)
    num_forms = len(_packed_forms(last, budget))
    above = _doubled(last, largest)[: max(0, max_graphs // num_forms - 1)]
    lengths, weights = _gather_candidates(histogram, last)
    graphs = [len(_packed_forms(int(length), budget)) for length in lengths]
    edges = choose_edges(lengths, weights, graphs, max_graphs - num_forms * len(above))
    sizes = [*above, *(int(lengths[edge]) for edge in reversed(edges))]
    few = [_few_rows(size, budget) for size in sizes[:num_few] if size >= _LARGE_TOKENS]
    return [*few, *(bucket for size in sizes for bucket in _packed_forms(size, budget))]


def _few_rows(size: int, budget: BucketBudget) -> Bucket:
    return packed_bucket(size, min(size, budget.max_model_len, _LONG_TOKENS), size // _FEW_TOKENS)


def _packed_forms(size: int, budget: BucketBudget) -> list[Bucket]:
    """Return the buckets of so many tokens: one, or one for short texts and one for long ones."""
    # Not rounded: what fills a bucket up stands in texts of at most the length that the model has positions for.
    longest = min(size, budget.max_model_len)
    if longest <= _LONG_TOKENS or budget.max_graphs < 2:
        return [packed_bucket(size, longest, max(1, size // _SLOT_TOKENS))]
    few, many = size // _LONG_TOKENS, size // _SLOT_TOKENS
    return [packed_bucket(size, _LONG_TOKENS, many), packed_bucket(size, longest, few)]


def _doubled(last: int, largest: int) -> list[int]:
    """Return ``largest`` and its halves that are more than ``last``, largest first."""
    sizes = []
    while largest > last:
        sizes.append(largest)
        largest = largest // 2
    return sizes


_PLANNERS: Final[Mapping[str, Callable[[BucketBudget, NDArray[np.int64]], list[Bucket]]]] = MappingProxyType(
    {"padded": _plan_padded, "packed": _plan_packed}
)
