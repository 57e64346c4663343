"""Batches of texts of any lengths, one after the other in one row: no padding, and few small batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Graph
from poolgraph.runtime.planner import Batch, BatchLayout, plan_packed_batches
from poolgraph.runtime.runner_uniform import attended_tokens, stack_prompt_lengths, token_types
from poolgraph.runtime.tokenizer import EncodedText


def _bounds(texts: Sequence[EncodedText]) -> NDArray[np.int64]:
    """Return where texts begin, and where the last one ends, (batch_size + 1,)."""
    return np.cumsum([0, *(text.num_tokens for text in texts)], dtype=np.int64)


def _join(values: Callable[[EncodedText], NDArray[np.int64]]) -> Callable[[Sequence[EncodedText]], NDArray[np.int64]]:
    return lambda texts: np.concatenate([values(text) for text in texts])


_INPUTS: Final[Mapping[str, Callable[[Sequence[EncodedText]], NDArray[np.int64]]]] = MappingProxyType(
    {
        "input_ids": _join(lambda text: text.input_ids),
        "cu_seqlens": _bounds,
        "token_type_ids": _join(token_types),
        "attended_mask": _join(attended_tokens),
        "prompt_length": stack_prompt_lengths,
    }
)


class PackedRunner:
    """The runner of the ``packed`` layout where inputs need no fixed shape."""

    layout: Final[BatchLayout] = "packed"

    def plan(
        self, lengths: Sequence[int], *, max_batch_tokens: int, runs: int, lone_fills: bool = False
    ) -> tuple[Batch, ...]:
        """Cut texts into batches of any lengths."""
        return plan_packed_batches(lengths, max_batch_tokens=max_batch_tokens, runs=runs, lone_fills=lone_fills)

    def feed(self, texts: Sequence[EncodedText], graph: Graph) -> Mapping[str, NDArray[np.int64]]:
        """Join the inputs that the graph names, (num_tokens,) each, but (batch_size,) those with a number a text."""
        return {tensor.name: _INPUTS[tensor.name](texts) for tensor in graph.inputs}

    def split_tokens(self, answer: NDArray[np.float32], texts: Sequence[EncodedText]) -> list[NDArray[np.float32]]:
        """Take the texts' own rows out of an answer (num_tokens, size) of them all."""
        bounds = _bounds(texts)
        assert len(answer) == bounds[-1]
        return np.split(answer, bounds[1:-1])
