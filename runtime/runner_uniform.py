"""Batches of equal length: no padding, no mask, so that a text's answer does not depend on its batch-mates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Graph
from poolgraph.runtime.planner import Batch, BatchLayout, plan_batches
from poolgraph.runtime.tokenizer import EncodedText


def stack_prompt_lengths(texts: Sequence[EncodedText]) -> NDArray[np.int64]:
    """Return the prompt lengths of the texts, (batch_size,)."""
    return np.array([text.prompt_length for text in texts], dtype=np.int64)


def token_types(text: EncodedText) -> NDArray[np.int64]:
    """Return the token types of a text, zeros where the tokenizer gave none, (num_tokens,)."""
    return np.zeros_like(text.input_ids) if text.token_type_ids is None else text.token_type_ids


def attended_tokens(text: EncodedText) -> NDArray[np.int64]:
    """Return 1 for each token of a text that is attended to, 0 for the others, (num_tokens,)."""
    return np.ones_like(text.input_ids) if text.attended is None else text.attended


def _stack(values: Callable[[EncodedText], NDArray[np.int64]]) -> Callable[[Sequence[EncodedText]], NDArray[np.int64]]:
    return lambda texts: np.stack([values(text) for text in texts])


_INPUTS: Final[Mapping[str, Callable[[Sequence[EncodedText]], NDArray[np.int64]]]] = MappingProxyType(
    {
        "input_ids": _stack(lambda text: text.input_ids),
        "token_type_ids": _stack(token_types),
        "attended_mask": _stack(attended_tokens),
        "prompt_length": stack_prompt_lengths,
    }
)


class UniformRunner:
    """The runner of the ``uniform`` layout."""

    layout: Final[BatchLayout] = "uniform"

    def plan(
        self, lengths: Sequence[int], *, max_batch_tokens: int, runs: int, lone_fills: bool = False
    ) -> tuple[Batch, ...]:
        """Cut texts into batches of equal length."""
        return plan_batches(lengths, max_batch_tokens=max_batch_tokens, runs=runs)

    def feed(self, texts: Sequence[EncodedText], graph: Graph) -> Mapping[str, NDArray[np.int64]]:
        """Stack the inputs that the graph names, each (batch_size, sequence_length)."""
        return {tensor.name: _INPUTS[tensor.name](texts) for tensor in graph.inputs}

    def split_tokens(self, answer: NDArray[np.float32], texts: Sequence[EncodedText]) -> list[NDArray[np.float32]]:
        """Return the rows of an answer (batch_size, sequence_length, size) whole: there is no padding in them."""
        assert answer.shape[:2] == (len(texts), texts[0].num_tokens)
        return list(answer)
