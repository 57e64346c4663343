"""How token rows are laid out in a batch: poolers are written against these methods, so each exists once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_BEYOND = 1 << 40
"""An index beyond all texts."""


class Layout(Protocol):
    """What a pooler may ask of a batch; ``rows`` are token vectors as the backbone returns them.

    A text's *kept* tokens are its tokens without the padding and, where the pooler leaves the prompt out, without the
    prompt's.
    """

    def as_batch(self, tokens: Tensor) -> Tensor:
        """Return a number a token as backbones take them, (batch_size, sequence_length) or (1, num_tokens)."""
        ...

    def of_batch(self, rows: Tensor) -> Tensor:
        """Return a backbone's rows as this layout has them: what ``as_batch`` did, undone."""
        ...

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Return each token's position in its own text, from 0; any value in padding."""
        ...

    def running_count(self, counted: Tensor) -> Tensor:
        """Return how many tokens of its text are counted up to each counted one, itself included; 0 for the others.

        Args:
            counted: 1 or 0 for each token, in the shape of input_ids, which the result has too.
        """
        ...

    def first(self, rows: Tensor) -> Tensor:
        """Return each text's first kept row, (batch_size, hidden_size)."""
        ...

    def last(self, rows: Tensor) -> Tensor:
        """Return each text's last row, (batch_size, hidden_size)."""
        ...

    def sum(self, rows: Tensor) -> Tensor:
        """Return the sum of each text's kept rows, (batch_size, hidden_size)."""
        ...

    def max(self, rows: Tensor) -> Tensor:
        """Return the element-wise maximum of each text's kept rows, (batch_size, hidden_size)."""
        ...

    def weighted_sum(self, rows: Tensor) -> Tensor:
        """Return the sum of each text's kept rows, each times its position from 1, (batch_size, hidden_size)."""
        ...

    def count(self, rows: Tensor) -> Tensor:
        """Return the number of kept rows of each text, (batch_size, 1), in the rows' dtype, at least 1e-9."""
        ...

    def weight_count(self, rows: Tensor) -> Tensor:
        """Return the sum of the kept rows' positions from 1, (batch_size, 1), at least 1e-9."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedLayout:
    """Rows of shape (batch_size, sequence_length, hidden_size) under a mask of 0 and 1, padded on either side.

    What stands in padding does not matter, be it NaN, which attention without any key leaves there: rows are replaced,
    not multiplied by 0.

    Attributes:
        attention_mask: (batch_size, sequence_length), 1 for tokens.
        prompt_length: (batch_size,) leading tokens that the pooling leaves out, or None.
    """

    attention_mask: Tensor
    prompt_length: Tensor | None = None

    def as_batch(self, tokens: Tensor) -> Tensor:
        """Return them as they are."""
        return tokens

    def of_batch(self, rows: Tensor) -> Tensor:
        """Return them as they are."""
        return rows

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Count the mask, so that a text's positions are the same under left and right padding."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)

    def running_count(self, counted: Tensor) -> Tensor:
        """Count along the text; padding does not count, and has 0."""
        counted = counted * self.attention_mask
        return counted.cumsum(1) * counted

    def first(self, rows: Tensor) -> Tensor:
        """Take the row at the first kept position; where nothing is kept, the text's first."""
        start = _first_index(self.attention_mask)
        if self.prompt_length is None:
            return _take(rows, start)
        kept = self._kept()
        return _take(rows, torch.where(kept.amax(1) > 0, _first_index(kept), start))

    def last(self, rows: Tensor) -> Tensor:
        """Take the row at the last position of the mask."""
        return _take(rows, _last_index(self.attention_mask))

    def sum(self, rows: Tensor) -> Tensor:
        """Sum under the mask."""
        return self._fill(rows, 0.0).sum(1)

    def max(self, rows: Tensor) -> Tensor:
        """Take the maximum under the mask."""
        return self._fill(rows, float("-inf")).amax(1)

    def weighted_sum(self, rows: Tensor) -> Tensor:
        """Sum under the mask, weighted by position."""
        return (self._fill(rows, 0.0) * self._positions(rows)).sum(1)

    def count(self, rows: Tensor) -> Tensor:
        """Count the mask."""
        return self._weights(rows).sum(1).clamp(min=1e-9)

    def weight_count(self, rows: Tensor) -> Tensor:
        """Sum the positions under the mask."""
        return (self._weights(rows) * self._positions(rows)).sum(1).clamp(min=1e-9)

    def _kept(self) -> Tensor:
        if self.prompt_length is None:
            return self.attention_mask
        position = self.attention_mask.cumsum(1)
        return self.attention_mask * (position > self.prompt_length.unsqueeze(1)).to(self.attention_mask.dtype)

    def _fill(self, rows: Tensor, value: float) -> Tensor:
        """Put ``value`` in place of the rows that are not kept."""
        return rows.masked_fill(self._kept().unsqueeze(-1) == 0, value)

    def _weights(self, rows: Tensor) -> Tensor:
        return self._kept().unsqueeze(-1).to(rows.dtype)

    def _positions(self, rows: Tensor) -> Tensor:
        return self.attention_mask.cumsum(1).unsqueeze(-1).to(rows.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformLayout:
    """Rows of shape (batch_size, sequence_length, hidden_size) that are all tokens: texts of equal length, no mask.

    Attributes:
        prompt_length: (batch_size,) leading tokens that the pooling leaves out, or None.
    """

    prompt_length: Tensor | None = None

    def as_batch(self, tokens: Tensor) -> Tensor:
        """Return them as they are."""
        return tokens

    def of_batch(self, rows: Tensor) -> Tensor:
        """Return them as they are."""
        return rows

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Count from 0, one row for the whole batch."""
        return torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)

    def running_count(self, counted: Tensor) -> Tensor:
        """Count along the text."""
        return counted.cumsum(1) * counted

    def first(self, rows: Tensor) -> Tensor:
        """Take the row after the prompt; where nothing follows it, the first."""
        if self.prompt_length is None:
            return rows[:, 0]
        return _take(rows, torch.where(self.prompt_length < rows.shape[1], self.prompt_length, 0))

    def last(self, rows: Tensor) -> Tensor:
        """Take the last row."""
        return rows[:, -1]

    def sum(self, rows: Tensor) -> Tensor:
        """Multiply with the weights: a product a text, whose bits do not depend on the batch as a reduction's do."""
        return (self._weights(rows) @ rows).squeeze(1)

    def max(self, rows: Tensor) -> Tensor:
        """Take the maximum of the kept rows."""
        if self.prompt_length is None:
            return rows.amax(1)
        return rows.masked_fill(self._weights(rows).transpose(1, 2) == 0, float("-inf")).amax(1)

    def weighted_sum(self, rows: Tensor) -> Tensor:
        """Multiply with the weights times the positions."""
        return ((self._weights(rows) * self._positions(rows)) @ rows).squeeze(1)

    def count(self, rows: Tensor) -> Tensor:
        """Sum the weights."""
        return self._weights(rows).sum(2).clamp(min=1e-9)

    def weight_count(self, rows: Tensor) -> Tensor:
        """Sum the weights times the positions."""
        return (self._weights(rows) * self._positions(rows)).sum(2).clamp(min=1e-9)

    def _weights(self, rows: Tensor) -> Tensor:
        """Return 1 for kept rows and 0 for the prompt's, (batch_size or 1, 1, sequence_length)."""
        if self.prompt_length is None:
            return torch.ones(1, 1, rows.shape[1], dtype=rows.dtype, device=rows.device)
        index = torch.arange(rows.shape[1], device=rows.device)
        return (index[None, None] >= self.prompt_length[:, None, None]).to(rows.dtype)

    def _positions(self, rows: Tensor) -> Tensor:
        return torch.arange(1, rows.shape[1] + 1, device=rows.device).to(rows.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayout:
    """Rows of shape (num_tokens, hidden_size): texts one after the other, no padding.

    Attributes:
        cu_seqlens: (batch_size + 1,) int64, where each text starts, and the total.
        prompt_length: (batch_size,) leading tokens that the pooling leaves out, or None.
    """

    cu_seqlens: Tensor
    prompt_length: Tensor | None = None

    def as_batch(self, tokens: Tensor) -> Tensor:
        """Make them the one row of a batch."""
        return tokens.unsqueeze(0)

    def of_batch(self, rows: Tensor) -> Tensor:
        """Take the only row of the batch."""
        return rows.squeeze(0)

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Subtract each text's start from the token's index."""
        index = torch.arange(input_ids.shape[0], device=input_ids.device)
        return index - self.cu_seqlens.index_select(0, self._text_of(index))

    def running_count(self, counted: Tensor) -> Tensor:
        """Count along all texts and subtract what came before each."""
        total = counted.cumsum(0)
        before = (total - counted).index_select(0, self.cu_seqlens[:-1])
        text = self._text_of(torch.arange(counted.shape[0], device=counted.device))
        return (total - before.index_select(0, text)) * counted

    def first(self, rows: Tensor) -> Tensor:
        """Take the row after each text's prompt; where nothing follows it, the text's first."""
        start = self.cu_seqlens[:-1]
        if self.prompt_length is None:
            return rows.index_select(0, start)
        return rows.index_select(0, start + torch.where(self._lengths() > self.prompt_length, self.prompt_length, 0))

    def last(self, rows: Tensor) -> Tensor:
        """Take the row before the next text's start."""
        return rows.index_select(0, self.cu_seqlens[1:] - 1)

    def sum(self, rows: Tensor) -> Tensor:
        """Multiply with the membership matrix."""
        return self._members(rows) @ rows

    def max(self, rows: Tensor) -> Tensor:
        """Take the maximum over each text's members."""
        members = self._members(rows).unsqueeze(-1)
        return torch.where(members == 0, float("-inf"), rows.unsqueeze(0)).amax(1)

    def weighted_sum(self, rows: Tensor) -> Tensor:
        """Multiply with the membership matrix, weighted by position."""
        return (self._members(rows) * self._positions(rows)) @ rows

    def count(self, rows: Tensor) -> Tensor:
        """Count each text's members."""
        return self._members(rows).sum(1, keepdim=True).clamp(min=1e-9)

    def weight_count(self, rows: Tensor) -> Tensor:
        """Sum the members' positions."""
        return (self._members(rows) * self._positions(rows)).sum(1, keepdim=True).clamp(min=1e-9)

    def _lengths(self) -> Tensor:
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    def _text_of(self, index: Tensor) -> Tensor:
        return (index.unsqueeze(1) >= self.cu_seqlens[1:].unsqueeze(0)).sum(1)

    def _members(self, rows: Tensor) -> Tensor:
        """Return which token belongs to which text, (batch_size, num_tokens), in the rows' dtype."""
        index = torch.arange(rows.shape[0], device=rows.device).unsqueeze(0)
        start = self.cu_seqlens[:-1] if self.prompt_length is None else self.cu_seqlens[:-1] + self.prompt_length
        seen = torch.logical_and(index >= start.unsqueeze(1), index < self.cu_seqlens[1:].unsqueeze(1))
        return seen.to(rows.dtype)

    def _positions(self, rows: Tensor) -> Tensor:
        index = torch.arange(rows.shape[0], device=rows.device).unsqueeze(0)
        return (index - self.cu_seqlens[:-1].unsqueeze(1) + 1).to(rows.dtype)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Take one row a text: ``index`` is (batch_size,)."""
    return rows.gather(1, index.view(-1, 1, 1).expand(-1, 1, rows.shape[-1])).squeeze(1)


def _first_index(mask: Tensor) -> Tensor:
    """Return the index of each row's first 1, or 0.

    As a maximum of negated indices: ONNX Runtime has no ArgMax of int64, and on CUDA no minimum of it either; nor may
    the width be computed with there, which is known on the host alone.
    """
    index = torch.arange(mask.shape[1], device=mask.device).unsqueeze(0)
    nearest = torch.where(mask > 0, -index, -_BEYOND).amax(1)
    return torch.where(nearest == -_BEYOND, 0, -nearest)


def _last_index(mask: Tensor) -> Tensor:
    """Return the index of each row's last 1, or 0."""
    index = torch.arange(mask.shape[1], device=mask.device).unsqueeze(0)
    return torch.where(mask > 0, index, 0).amax(1)
