"""Batches of neighbouring lengths, padded to the longest under an attention mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Graph, Tokenization
from poolgraph.runtime.planner import Batch, BatchLayout, plan_padded_batches
from poolgraph.runtime.runner_uniform import attended_tokens, stack_prompt_lengths
from poolgraph.runtime.tokenizer import EncodedText


class PaddedRunner:
    """The runner of the ``padded`` layout; pads with the tokenizer's token on the tokenizer's side."""

    layout: Final[BatchLayout] = "padded"

    def __init__(self, tokenization: Tokenization) -> None:
        self._pad_token_id = tokenization.pad_token_id
        self._left = tokenization.padding_side == "left"

    def plan(
        self, lengths: Sequence[int], *, max_batch_tokens: int, runs: int, lone_fills: bool = False
    ) -> tuple[Batch, ...]:
        """Cut texts into batches of neighbouring lengths."""
        return plan_padded_batches(lengths, max_batch_tokens=max_batch_tokens, runs=runs)

    def feed(self, texts: Sequence[EncodedText], graph: Graph) -> Mapping[str, NDArray[np.int64]]:
        """Build the inputs that the graph names, each (batch_size, sequence_length)."""
        shape = (len(texts), max(text.num_tokens for text in texts))
        inputs = {
            "input_ids": np.full(shape, self._pad_token_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "attended_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
            "prompt_length": stack_prompt_lengths(texts),
        }
        for row, text in enumerate(texts):
            place = self._place(text.num_tokens, shape[1])
            inputs["input_ids"][row, place] = text.input_ids
            inputs["attention_mask"][row, place] = 1
            inputs["attended_mask"][row, place] = attended_tokens(text)
            if text.token_type_ids is not None:
                inputs["token_type_ids"][row, place] = text.token_type_ids
        return {tensor.name: inputs[tensor.name] for tensor in graph.inputs}

    def split_tokens(self, answer: NDArray[np.float32], texts: Sequence[EncodedText]) -> list[NDArray[np.float32]]:
        """Take the texts' own rows out of a padded answer (batch_size, sequence_length, size)."""
        return [rows[self._place(text.num_tokens, len(rows))] for rows, text in zip(answer, texts, strict=True)]

    def _place(self, num_tokens: int, length: int) -> slice:
        return slice(length - num_tokens, length) if self._left else slice(0, num_tokens)
