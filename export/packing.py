"""Texts packed one after the other: what must know where each starts, however deep in a model it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_CU_SEQLENS: ContextVar[Tensor | None] = ContextVar("cu_seqlens", default=None)


@contextmanager
def packed(cu_seqlens: Tensor) -> Iterator[None]:
    """Within, the one row of a model's inputs is texts that start at ``cu_seqlens``, (batch_size + 1,) of int64.

    transformers hands a mask to its attention, and nothing to a rotary embedding; neither can say where texts begin.
    """
    token = _CU_SEQLENS.set(cu_seqlens)
    try:
        yield
    finally:
        _CU_SEQLENS.reset(token)


def current_cu_seqlens() -> Tensor | None:
    """Return where the texts begin, None outside of ``packed``."""
    return _CU_SEQLENS.get()


def text_index(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Return the text of each token, (num_tokens,)."""
    index = torch.arange(num_tokens, device=cu_seqlens.device)
    return (index.unsqueeze(1) >= cu_seqlens[1:].unsqueeze(0)).sum(1)


def text_lengths(position_ids: Tensor) -> Tensor:
    """Return the length of each token's text, (batch_size, 1) or, packed, (1, num_tokens).

    Args:
        position_ids: (batch_size, sequence_length), from 0 in each text.
    """
    cu_seqlens = current_cu_seqlens()
    if cu_seqlens is None:
        return position_ids.amax(-1, keepdim=True) + 1
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    return lengths.index_select(0, text_index(cu_seqlens, position_ids.shape[-1])).unsqueeze(0)
