"""Length-sorted padded batches, as a careful user of an engine without a text interface writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """Texts padded to the longest of them; ``rows`` are their places in the caller's list.

    ``inputs`` maps input_ids, attention_mask and token_type_ids to int64 arrays (batch_size, sequence_length).
    """

    rows: NDArray[np.int64]
    inputs: dict[str, NDArray[np.int64]]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids, truncated as the tokenizer says."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def plan_batches(ids: Sequence[Sequence[int]], batch_size: int, pad_id: int) -> Iterator[PaddedBatch]:
    """Cut the texts, longest first, into batches of ``batch_size``."""
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield PaddedBatch(rows=rows, inputs=_pad([ids[row] for row in rows], pad_id))


def _pad(ids: Sequence[Sequence[int]], pad_id: int) -> dict[str, NDArray[np.int64]]:
    shape = (len(ids), max(len(row) for row in ids))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(ids):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": np.zeros_like(input_ids)}
