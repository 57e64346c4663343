"""Late chunking: token rows averaged over chunks of a text that the model has seen whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.module_kinds import read_head_kinds

_HEADS: Final = ("Dense", "LayerNorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One chunk of a text.

    Attributes:
        token_range: Its first token and the one after its last.
        char_range: Its first character and the one after its last; None for a prompt of token ids, and for a chunk of
            special tokens alone.
    """

    token_range: tuple[int, int]
    char_range: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LateChunking:
    """How a text was cut into chunks; row ``i`` of the answer belongs to ``chunks[i]``.

    Attributes:
        chunk_size: Tokens of a chunk, special tokens counted; the last one may have fewer.
        input_tokens: Tokens of the text.
        chunks: In order.
        strategy: Always ``fixed_tokens``.
    """

    chunk_size: int
    input_tokens: int
    chunks: tuple[Chunk, ...]
    strategy: str = "fixed_tokens"


def plan_chunks(num_tokens: int, chunk_size: int, offsets: Sequence[tuple[int, int]] | None = None) -> LateChunking:
    """Cut a text of ``num_tokens`` tokens into chunks of ``chunk_size``.

    Args:
        num_tokens: Tokens of the text.
        chunk_size: Tokens of a chunk.
        offsets: For each token its first character and the one after its last, equal for special tokens; None where
            that is not known.
    """
    ranges = [(start, min(start + chunk_size, num_tokens)) for start in range(0, num_tokens, chunk_size)]
    chunks = tuple(
        Chunk(token_range=(start, end), char_range=_span((offsets or ())[start:end])) for start, end in ranges
    )
    return LateChunking(chunk_size=chunk_size, input_tokens=num_tokens, chunks=chunks)


def _span(offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    filled = [(start, end) for start, end in offsets if start < end]
    return (min(start for start, _ in filled), max(end for _, end in filled)) if filled else None


def average_chunks(rows: NDArray[np.float32], chunk_size: int) -> NDArray[np.float32]:
    """Average token rows chunk by chunk.

    Args:
        rows: (num_tokens, size), left as they are.
        chunk_size: Tokens of a chunk.

    Returns:
        (num_chunks, size); the bits depend on this text alone.
    """
    starts = np.arange(0, len(rows), chunk_size)
    totals = np.add.reduceat(rows.astype(np.float64), starts, axis=0)
    sizes = np.diff(np.append(starts, len(rows)))
    return np.asarray(totals / sizes[:, None], dtype=np.float32)


def check_late_chunking(directory: Path) -> None:
    """Check that an artifact's token rows may be averaged: nothing but a normalization may follow its backbone.

    vLLM averages the backbone's rows and applies the head to the averages. The artifact's rows have the head applied
    already, which gives the same only where there is none.

    Raises:
        InputError: a head lies between the backbone and the rows.
        ArtifactError: a file of the checkpoint is not what sentence-transformers writes.
    """
    if heads := [kind for kind in read_head_kinds(directory) if kind in _HEADS]:
        raise InputError(
            f"late chunking averages the rows before the head, but {' and '.join(heads)} of modules.json "
            "is compiled into the token graph; average the answers of token_embed instead",
            parameter="late_chunking_params",
        )
