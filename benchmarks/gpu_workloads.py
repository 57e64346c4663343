"""What the engines of the GPU benchmark answer: batches of token ids of one length, mixed lengths, and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gpu_models import FIRST_WORD, MAX_SEQ_LENGTH, SEED, SMALLEST_VOCABULARY
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MAX_BATCH_TOKENS = 16_384
"""Tokens, padding included, that engines which are given batches compute at once."""

SHAPES = {"32x16": (32, 16), "64x128": (64, 128), "32x512": (32, 512)}
QUICK_SHAPES = {"4x16": (4, 16), "2x32": (2, 32)}
MIXED, TEXTS, TEXT_IDS = "mixed", "texts x512", "their ids x512"
NUM_MIXED, NUM_TEXTS, QUICK_NUMBER = 512, 512, 12
MEDIAN_LENGTH, SPREAD, SHORTEST = 90.0, 0.9, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Texts as token ids, answered in one call; of ``TEXTS`` the strings count, and their ids are for the others."""

    name: str
    ids: tuple[Ids, ...]
    texts: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.ids]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts, without padding."""
        return sum(self.lengths)

    @property
    def is_one_shape(self) -> bool:
        """Whether all texts are of one length."""
        return len(set(self.lengths)) == 1


def build_workloads(*, quick: bool) -> list[Workload]:
    """Return the workloads of token ids; they are the same for all models, whose vocabularies hold them."""
    source = np.random.default_rng(SEED)
    shapes = QUICK_SHAPES if quick else SHAPES
    workloads = [
        Workload(name=name, ids=_random_ids(source, [length] * count)) for name, (count, length) in shapes.items()
    ]
    lengths = source.lognormal(np.log(MEDIAN_LENGTH), SPREAD, QUICK_NUMBER if quick else NUM_MIXED)
    mixed = np.clip(lengths.round(), SHORTEST, MAX_SEQ_LENGTH).astype(int).tolist()
    return [*workloads, Workload(name=MIXED, ids=_random_ids(source, mixed))]


def build_text_workloads(tokenizer: object, passages: Sequence[str], *, quick: bool) -> list[Workload]:
    """Return texts of exactly ``MAX_SEQ_LENGTH`` tokens, as strings and as the ids of these strings."""
    from tokenizers import Tokenizer

    assert isinstance(tokenizer, Tokenizer)
    words = " ".join(passages).split()
    count = QUICK_NUMBER if quick else NUM_TEXTS
    texts, ids = [], []
    for index in range(count):
        start = index * 977 % len(words)
        turned = " ".join((words[start:] + words[:start]) * (1 + 2 * MAX_SEQ_LENGTH // len(words)))[:20_000]
        encoding = tokenizer.encode(turned)
        text = turned[: encoding.offsets[MAX_SEQ_LENGTH - 2][1]]  # the last token is [SEP], of the first [CLS]
        texts.append(text)
        ids.append(np.array(tokenizer.encode(text).ids, dtype=np.int64))
    return [Workload(name=TEXTS, ids=tuple(ids), texts=tuple(texts)), Workload(name=TEXT_IDS, ids=tuple(ids))]


def plan_padded(lengths: Sequence[int], max_tokens: int = MAX_BATCH_TOKENS) -> Iterator[NDArray[np.int64]]:
    """Yield the texts of each batch: longest first, as many as fit when padded to the longest of them."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size


def plan_packed(lengths: Sequence[int], max_tokens: int = MAX_BATCH_TOKENS) -> Iterator[NDArray[np.int64]]:
    """Yield the texts of each batch: as many, in their order, as fit end to end."""
    batch: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if batch and used + length > max_tokens:
            yield np.array(batch)
            batch, used = [], 0
        batch.append(index)
        used += length
    if batch:
        yield np.array(batch)


def pad(rows: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Return ids padded with 0 on the right and their mask, (batch_size, sequence_length) each."""
    input_ids = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return input_ids, mask


def _random_ids(source: np.random.Generator, lengths: Sequence[int]) -> tuple[Ids, ...]:
    return tuple(source.integers(FIRST_WORD, SMALLEST_VOCABULARY, length) for length in lengths)
