"""What is traced: backbone, pooling and head as one module, and one entry a layout, the signature of its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from poolgraph.export.packing import packed
from poolgraph.graphs.families import OUTPUT_NAMES, AnswerKind
from poolgraph.graphs.pattern import SEQUENCE_AXIS, TOKENS_AXIS
from poolgraph.poolers.head import Head
from poolgraph.poolers.layout import Layout, PackedLayout, PaddedLayout, UniformLayout
from poolgraph.poolers.pooling import Pooling
from poolgraph.tasks import GraphFamily


class PoolingModule(nn.Module):
    """Backbone, pooling and head as one module.

    Args:
        backbone: A transformers model that returns ``last_hidden_state``.
        pooling: Token rows to one vector a text; None where there is only the token family.
        head: What follows the pooling.
        row_head: What the backbone's rows pass before they are pooled, None for nothing. Its parameters count as the
            backbone's.
        kind: What the answers are.
        position_offset: pad_token_id where positions are counted from pad_token_id + 1, else None.
        has_token_types: Whether the backbone takes token types.
        head_takes_rows: Whether the head also fits the backbone's token rows.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pooling: Pooling | None,
        head: Head,
        *,
        row_head: nn.Module | None = None,
        kind: AnswerKind,
        position_offset: int | None,
        has_token_types: bool,
        head_takes_rows: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.pooling, self.head, self.kind = backbone, pooling, head, kind
        self.backbone.add_module("row_head", row_head or nn.Identity())
        self.position_offset = position_offset
        self.has_token_types = has_token_types
        self.head_takes_rows = head_takes_rows

    def forward(
        self,
        layout: Layout,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        attended_mask: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the values that ``output_names`` names, (batch_size, size) or one row a token.

        Args:
            layout: How the batch is laid out.
            input_ids: (batch_size, sequence_length); packed, (num_tokens,), as are all others.
            attention_mask: 1 for tokens, or None where there is no padding.
            token_type_ids: None for zeros.
            attended_mask: 1 for tokens that others see, None where they see all.
        """
        tokens = {"input_ids": input_ids, "position_ids": self._position_ids(layout, input_ids)}
        if self.has_token_types:
            tokens["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        seen = attention_mask if attended_mask is None else layout.as_batch(attended_mask)
        batch = {name: layout.as_batch(value) for name, value in tokens.items()}
        rows = self.backbone(attention_mask=seen, **batch).last_hidden_state
        rows = layout.of_batch(self.backbone.get_submodule("row_head")(rows))
        results: list[Tensor] = []
        if self.pooling is not None:
            results += self.head.forward_pooled(self.pooling(layout, rows))
        if self.head_takes_rows:
            results += self.head.forward_tokens(rows.float())
        return tuple(results)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Raw and finished value of each family, the finished one alone where they are the same."""
        present: dict[GraphFamily, bool] = {"sequence": self.pooling is not None, "token": self.head_takes_rows}
        chosen = slice(0, 2) if self.head.finishes else slice(1, 2)
        kept: dict[GraphFamily, slice] = {"sequence": chosen, "token": slice(0, 1) if len(self.head.tokens) else chosen}
        return tuple(
            name for family in present if present[family] for name in OUTPUT_NAMES[self.kind, family][kept[family]]
        )

    def _position_ids(self, layout: Layout, input_ids: Tensor) -> Tensor:
        if self.position_offset is None:
            return layout.position_ids(input_ids)
        # fairseq's make_positions: padding tokens stay at pad_token_id and do not count, also inside a text.
        return layout.running_count(input_ids.ne(self.position_offset).long()) + self.position_offset


class PaddedEntry(nn.Module):
    """The graph's signature in the padded layout."""

    def __init__(self, module: PoolingModule) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_length: Tensor | None = None,
        attended_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Answer texts of several lengths."""
        layout = PaddedLayout(attention_mask=attention_mask, prompt_length=prompt_length)
        result: tuple[Tensor, ...] = self.module(layout, input_ids, attention_mask, token_type_ids, attended_mask)
        return result


class UniformEntry(nn.Module):
    """The graph's signature in the uniform layout."""

    def __init__(self, module: PoolingModule) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_length: Tensor | None = None,
        attended_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Answer texts of one length."""
        layout = UniformLayout(prompt_length=prompt_length)
        result: tuple[Tensor, ...] = self.module(layout, input_ids, None, token_type_ids, attended_mask)
        return result


class PackedEntry(nn.Module):
    """The graph's signature in the packed layout."""

    def __init__(self, module: PoolingModule) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_length: Tensor | None = None,
        attended_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Answer texts one after the other."""
        layout = PackedLayout(cu_seqlens=cu_seqlens, prompt_length=prompt_length)
        with packed(cu_seqlens):
            result: tuple[Tensor, ...] = self.module(layout, input_ids, None, token_type_ids, attended_mask)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One layout's signature.

    Attributes:
        module: Wraps a pooling module.
        token_axes: Axes of the inputs with a number a token.
        own_inputs: The inputs that this layout adds to ``input_ids``, each with its axes.
    """

    module: Callable[[PoolingModule], nn.Module]
    token_axes: tuple[str, ...]
    own_inputs: Mapping[str, tuple[str, ...]]


BATCH_AXIS, BOUNDS_AXIS = "batch_size", "batch_size + 1"
MATRIX = (BATCH_AXIS, SEQUENCE_AXIS)

ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "padded": Entry(module=PaddedEntry, token_axes=MATRIX, own_inputs={"attention_mask": MATRIX}),
        "uniform": Entry(module=UniformEntry, token_axes=MATRIX, own_inputs={}),
        "packed": Entry(module=PackedEntry, token_axes=(TOKENS_AXIS,), own_inputs={"cu_seqlens": (BOUNDS_AXIS,)}),
    }
)
"""The layouts that can be traced."""
