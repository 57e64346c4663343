"""Texts longer than the model's limit: refused, cut, or embedded chunk by chunk and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from poolgraph.errors import InputError
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

LongTextKind = Literal["error", "truncate", "chunk"]
LONG_TEXT_KINDS: Final[tuple[str, ...]] = get_args(LongTextKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongTexts:
    """What is done with texts longer than the model's limit where the request does not say how to truncate.

    Attributes:
        kind: ``error`` refuses them, ``truncate`` cuts them to the limit, ``chunk`` embeds them in windows (the task
            ``embed``; other tasks are refused as by ``error``).
        overlap: Tokens that neighbouring windows share.
        max_tokens: Of the longest text that is embedded in windows; None for no bound.
    """

    kind: LongTextKind = "error"
    overlap: int = 0
    max_tokens: int | None = None

    def check(self, num_tokens: int) -> None:
        """Check that a text is not too long for windows either.

        Raises:
            InputError: it is, in vLLM's words for its ``max_embed_len``.
        """
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise InputError(
                f"This model's maximum embedding input length is {self.max_tokens} tokens. However, you requested "
                f"{num_tokens} tokens in the input for embedding generation. Please reduce the length of the input.",
                parameter="input_tokens",
                value=num_tokens,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunks:
    """How a long text was embedded.

    Attributes:
        num_chunks: Windows that it was cut into.
        num_tokens: Tokens that the model ran, of all windows, special tokens, prompts and overlaps counted each time.
    """

    num_chunks: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedText:
    """A text as windows that the model takes.

    Attributes:
        whole: The text's tokens as one, for what is reported of it.
        windows: Each with special tokens and prompt.
        weights: (num_windows,) tokens of the text itself in each window.
    """

    whole: EncodedText
    windows: tuple[EncodedText, ...]
    weights: NDArray[np.float64]

    @property
    def report(self) -> TextChunks | None:
        """What is reported of the text; None where it fitted whole."""
        if len(self.windows) == 1:
            return None
        return TextChunks(num_chunks=len(self.windows), num_tokens=sum(one.num_tokens for one in self.windows))

    def average(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Average the windows' vectors (num_windows, size) by token count; a lone window's keep their bits."""
        if len(self.windows) == 1:
            return np.asarray(vectors[0])
        shares = self.weights / self.weights.sum()
        return np.asarray((vectors.astype(np.float64) * shares[:, None]).sum(axis=0), dtype=np.float32)


def chunk_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], *, prompt: str = "", overlap: int = 0, first_index: int = 0
) -> list[ChunkedText]:
    """Tokenize texts, cutting those longer than the model's limit into windows of at most that many tokens.

    A text that fits has the tokens of ``TextTokenizer.encode``. The windows of one that does not are slices of its
    tokens, each between the special tokens and behind the prompt of the whole.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts.
        prompt: Put before each window.
        overlap: Tokens that neighbouring windows share.
        first_index: Index of the first text in the caller's own list, for messages.

    Raises:
        InputError: a text that the tokenizer refuses, or no room in a window beside prompt and overlap.
    """
    cut = tokenizer.encode(texts, prompt=prompt, truncate_to=TO_MODEL_LIMIT, first_index=first_index)
    return [
        _chunk(tokenizer, one, text, prompt, overlap, index) if one.num_truncated_tokens else whole_text(one)
        for index, (text, one) in enumerate(zip(texts, cut, strict=True), first_index)
    ]


def whole_text(encoded: EncodedText) -> ChunkedText:
    """Return a text that fits as its only window."""
    return ChunkedText(whole=encoded, windows=(encoded,), weights=np.ones(1))


def _chunk(tokenizer: TextTokenizer, cut: EncodedText, text: str, prompt: str, overlap: int, index: int) -> ChunkedText:
    (encoding,) = tokenizer.encode_batch([prompt + text], add_special_tokens=True, first_index=index, offsets=True)
    head, tail = _find_body(encoding, len(prompt))
    room = tokenizer.max_model_len - head - (len(encoding) - tail)
    spans = _cut_spans(head, tail, room, overlap)
    ids = np.array(encoding.ids, dtype=np.int64)
    types = np.array(encoding.type_ids, dtype=np.int64)

    def take(start: int, stop: int) -> EncodedText:
        place = np.r_[0:head, start:stop, tail : len(ids)]
        kept = None if cut.token_type_ids is None else types[place]
        return replace(cut, input_ids=ids[place], token_type_ids=kept, num_truncated_tokens=0)

    return ChunkedText(
        whole=take(head, tail),
        windows=tuple(take(*span) for span in spans),
        weights=np.array([stop - start for start, stop in spans], dtype=np.float64),
    )


def chunk_ids(tokenizer: TextTokenizer, ids: Sequence[int], *, overlap: int = 0) -> ChunkedText:
    """Cut token ids beyond the model's limit into windows; special tokens are put nowhere, as in vLLM.

    Raises:
        InputError: no ids, an id outside the vocabulary, or an overlap that leaves no room.
    """
    cut = tokenizer.encode_ids(ids, truncate_to=TO_MODEL_LIMIT)
    if not cut.num_truncated_tokens:
        return whole_text(cut)
    everything = np.asarray(ids, dtype=np.int64)
    spans = _cut_spans(0, len(everything), tokenizer.max_model_len, overlap)
    return ChunkedText(
        whole=replace(cut, input_ids=everything, num_truncated_tokens=0),
        windows=tuple(tokenizer.encode_ids(ids[start:stop]) for start, stop in spans),
        weights=np.array([stop - start for start, stop in spans], dtype=np.float64),
    )


def _cut_spans(head: int, tail: int, room: int, overlap: int) -> list[tuple[int, int]]:
    if overlap >= room:
        raise InputError(
            f"chunks have room for {room} tokens of a text beside the prompt and special tokens; the overlap of "
            f"{overlap} must be smaller",
            parameter="chunk_overlap",
            value=overlap,
        )
    return [(start, min(start + room, tail)) for start in range(head, tail - overlap, room - overlap)]


def _find_body(encoding: Encoding, num_prompt_chars: int) -> tuple[int, int]:
    """Return the first token of the text itself, behind prompt and special tokens, and the one after its last."""
    special, offsets = encoding.special_tokens_mask, encoding.offsets
    tail = len(special)
    while tail and special[tail - 1]:
        tail -= 1
    head = 0
    while head < tail and (special[head] or 0 < offsets[head][1] <= num_prompt_chars):
        head += 1
    return head, tail
