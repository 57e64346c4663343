"""Runs a few shapes before the first request: sessions opened, weights packed, memory taken, pages read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from poolgraph.runtime.executor import Slots
from poolgraph.runtime.loaded import LoadedModel
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.tasks import GraphFamily

_LENGTHS: Final = (16, 64, 256)


def warm_up(model: LoadedModel, text: EncodedText, families: tuple[GraphFamily, ...], seconds: float) -> None:
    """Run batches of several lengths for about so many seconds; the first graph's sessions are opened in any case.

    Args:
        model: The model.
        text: Its tokens are repeated to make texts of each length.
        families: The graphs, that of most requests first; those that the variant lacks are left out.
        seconds: No run is started later than that.

    Raises:
        SessionError: a graph does not run.
    """
    end = time.monotonic() + seconds
    for number, (family, texts, threads) in enumerate(_plan(model, text, families)):
        if number > 0 and time.monotonic() > end:
            return
        model.run_batch(texts, family, threads=threads)


def _plan(
    model: LoadedModel, text: EncodedText, families: tuple[GraphFamily, ...]
) -> Iterator[tuple[GraphFamily, list[EncodedText], int]]:
    """Yield batches: a small one in each session that there will be, then larger ones."""
    slots, longest = model.plan_slots(), model.manifest.limits.max_model_len
    present = [family for family in families if family in model.variant.graphs]
    threads = dict.fromkeys((slots.threads, slots.lone_threads))
    yield from ((family, [text], number) for family in present for number in threads)
    for lengths in _plan_lengths(slots, longest):
        batch = [_resize(text, length) for length in lengths]
        yield from ((family, batch, slots.threads) for family in present[:1])


def _plan_lengths(slots: Slots, longest: int) -> Iterator[list[int]]:
    """Yield the lengths of each larger batch: of one length each, or where batches are packed, of many in one."""
    budget = slots.max_batch_tokens
    if slots.layout == "packed":
        yield list(_halve(budget, longest))
        return
    yield from ([length] * max(1, budget // length) for length in _LENGTHS if length <= longest)


def _halve(budget: int, longest: int) -> Iterator[int]:
    """Yield lengths that fill the budget, each half of what is left."""
    while budget:
        length = min(longest, -(-budget // 2))
        yield length
        budget -= length


def _resize(text: EncodedText, length: int) -> EncodedText:
    """Return a text of so many tokens, those of ``text`` over and over."""
    ids = np.resize(text.input_ids, length)
    types = None if text.token_type_ids is None else np.zeros_like(ids)
    return EncodedText(input_ids=ids, token_type_ids=types)
