"""Texts to token ids with the artifact's ``tokenizer.json``; safe to use from several threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.texts import check_texts
from poolgraph.runtime.tokenizer_file import TOKENIZER_FILE, load_tokenizer, types_texts

_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """One text as the graphs take it.

    Attributes:
        input_ids: (num_tokens,) int64.
        token_type_ids: (num_tokens,) int64; None for zeros, and for models without them.
        num_truncated_tokens: Tokens cut off to fit.
        prompt_length: Leading tokens of the prompt, counted only when the pooler leaves the prompt out.
        attended: (num_tokens,) int64, 0 for tokens that no token attends to; None where all are attended to.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None
    num_truncated_tokens: int = 0
    prompt_length: int = 0
    attended: NDArray[np.int64] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens kept, special tokens included."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedText(EncodedText):
    """A text, or a window of one, whose tokens know where they come from.

    Attributes:
        offsets: First character of each token and the one after its last, counted in the whole text.
        is_special: Whether the tokenizer added the token around the text.
    """

    offsets: tuple[tuple[int, int], ...]
    is_special: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A resolved truncation; ``max_tokens`` None leaves texts whole, and too long ones are refused."""

    max_tokens: int | None
    side: str
    add_special_tokens: bool


class TextTokenizer:
    """The artifact's tokenizer, its baked-in truncation and padding switched off.

    Args:
        artifact_dir: The artifact's directory.
        manifest: Its manifest.

    Raises:
        ArtifactError: ``tokenizer.json`` is missing or cannot be read.
    """

    def __init__(self, artifact_dir: Path, manifest: Manifest) -> None:
        self._tokenizer = load_tokenizer(artifact_dir / TOKENIZER_FILE, lower_case=manifest.tokenization.do_lower_case)
        self._side = manifest.tokenization.truncation_side
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_model_len = manifest.limits.max_model_len
        self._vocab_size = manifest.limits.vocab_size
        self._with_types = manifest.tokenization.needs_token_type_ids
        self._with_prompt_length = not manifest.pooler.include_prompt
        self._types_texts = self._with_types and types_texts(self._tokenizer)
        self._num_special_tokens = self._tokenizer.num_special_tokens_to_add(False)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self._count_prompt = lru_cache(maxsize=64)(self._measure_prompt)

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        truncate_to: int | None = None,
        truncation_side: str | None = None,
        add_special_tokens: bool = True,
        first_index: int = 0,
    ) -> list[EncodedText]:
        """Tokenize texts.

        Args:
            texts: The texts.
            prompt: Put before each of them.
            truncate_to: Tokens kept of a longer text, special tokens included and kept; -1 means the model's limit.
            truncation_side: Where tokens are cut off, ``left`` or ``right``; None is the model's own side.
            add_special_tokens: Whether the tokenizer adds its special tokens.
            first_index: Index of the first text in the caller's own list, for messages.

        Raises:
            InputError: not a str, not valid Unicode, too long without ``truncate_to``, or no token at all.
        """
        cut = self._resolve_cut(truncate_to, truncation_side, add_special_tokens=add_special_tokens)
        check_texts(texts, first_index=first_index)
        prompted = [prompt + text for text in texts] if prompt else texts
        encodings = self.encode_batch(prompted, add_special_tokens=add_special_tokens, first_index=first_index)
        prompt_length = self._count_prompt(prompt, cut) if prompt and self._with_prompt_length else 0
        suffixes = name_inputs("text", len(texts), first_index)
        return [
            self._finish(text, encoding, cut, prompt_length, suffix)
            for text, encoding, suffix in zip(prompted, encodings, suffixes, strict=True)
        ]

    def locate(
        self, texts: Sequence[str], *, truncate_to: int | None = None, stride: int | None = None, first_index: int = 0
    ) -> list[list[LocatedText]]:
        """Tokenize texts as ``encode`` does, with the places of their tokens.

        Args:
            texts: The texts.
            truncate_to: As for ``encode``.
            stride: Tokens that neighbouring windows of a text longer than the model's limit share; None gives each
                text as one window.
            first_index: Index of the first text in the caller's own list, for messages.

        Returns:
            The windows of each text.

        Raises:
            InputError: as ``encode``, or a stride that does not fit a window.
        """
        cut = self._resolve_cut(truncate_to if stride is None else -1, None, add_special_tokens=True)
        self._check_stride(stride)
        check_texts(texts, first_index=first_index)
        encodings = self.encode_batch(texts, add_special_tokens=True, first_index=first_index, offsets=True)
        suffixes = name_inputs("text", len(texts), first_index)
        return [
            self._finish_windows(text, encoding, cut, stride, suffix)
            for text, encoding, suffix in zip(texts, encodings, suffixes, strict=True)
        ]

    def encode_ids(
        self, ids: Sequence[int], *, truncate_to: int | None = None, truncation_side: str | None = None
    ) -> EncodedText:
        """Take token ids as they are: sliced to ``truncate_to``, never repaired with special tokens.

        Raises:
            InputError: no ids, an id outside the vocabulary, or too many of them without ``truncate_to``.
        """
        cut = self._resolve_cut(truncate_to, truncation_side, add_special_tokens=False)
        whole = self.check_ids(ids)
        kept = whole if cut.max_tokens is None else keep_ids(whole, cut.max_tokens, cut.side)
        self.check_length(len(kept), "")
        return EncodedText(
            input_ids=kept,
            token_type_ids=None,
            num_truncated_tokens=len(whole) - len(kept),
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, special tokens included, whatever the model's limit."""
        check_texts(texts)
        return [len(encoding) for encoding in self.encode_batch(texts, add_special_tokens=True, first_index=0)]

    @property
    def max_model_len(self) -> int:
        """The model's limit in tokens, special tokens included."""
        return self._max_model_len

    @property
    def has_token_types(self) -> bool:
        """Whether the model takes token types."""
        return self._with_types

    @property
    def backend(self) -> Tokenizer:
        """The tokenizers library's own object; several threads use it, so its settings must stay as they are."""
        return self._tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=True))

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool, first_index: int, offsets: bool = False
    ) -> list[Encoding]:
        """Tokenize texts of any length, neither cut nor checked; only with ``offsets`` are the offsets right.

        Raises:
            InputError: not valid Unicode, or the tokenizer refuses them.
        """
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            return list(encode(texts, add_special_tokens=add_special_tokens))
        except Exception as error:
            _check_unicode(texts, first_index)
            raise InputError(f"the tokenizer refused the texts: {error}", parameter="texts") from error

    def _finish(self, text: str, encoding: Encoding, cut: _Cut, prompt_length: int, suffix: str) -> EncodedText:
        num_tokens = len(encoding)
        if cut.max_tokens is not None and num_tokens > cut.max_tokens:
            encoding = self._truncate(text, cut, cut.max_tokens)
        self.check_length(len(encoding), suffix)
        kept = len(encoding)
        return EncodedText(
            input_ids=np.array(encoding.ids, dtype=np.int64),
            token_type_ids=np.array(encoding.type_ids, dtype=np.int64) if self._types_texts else None,
            num_truncated_tokens=num_tokens - kept,
            prompt_length=min(prompt_length, kept),
        )

    def _finish_windows(
        self, text: str, encoding: Encoding, cut: _Cut, stride: int | None, suffix: str
    ) -> list[LocatedText]:
        num_tokens = len(encoding)
        if cut.max_tokens is not None and num_tokens > cut.max_tokens:
            encoding = self._truncate(text, cut, cut.max_tokens, stride=stride or 0)
        self.check_length(len(encoding), suffix)
        num_cut = num_tokens - len(encoding) if stride is None else 0
        windows = [encoding] if stride is None else [encoding, *encoding.overflowing]
        return [
            LocatedText(
                input_ids=np.array(window.ids, dtype=np.int64),
                token_type_ids=np.array(window.type_ids, dtype=np.int64) if self._types_texts else None,
                num_truncated_tokens=num_cut,
                offsets=tuple(window.offsets),
                is_special=tuple(bool(mark) for mark in window.special_tokens_mask),
            )
            for window in windows
        ]

    def _truncate(self, text: str, cut: _Cut, max_tokens: int, *, stride: int = 0) -> Encoding:
        """Cut before the special tokens are added, as the tokenizer's own truncation does, without its shared state."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        num_special = self._num_special_tokens if cut.add_special_tokens else 0
        encoding.truncate(max(0, max_tokens - num_special), stride=stride, direction=cut.side)
        return self._tokenizer.post_process(encoding, add_special_tokens=cut.add_special_tokens)

    def _resolve_cut(self, truncate_to: int | None, side: str | None, *, add_special_tokens: bool) -> _Cut:
        chosen = self.resolve_truncation_side(side)
        least = self._num_special_tokens if add_special_tokens else 0
        max_tokens = self.resolve_limit(truncate_to, least=least)
        return _Cut(max_tokens=max_tokens, side=chosen, add_special_tokens=add_special_tokens)

    def resolve_truncation_side(self, side: str | None) -> str:
        """Return where tokens are cut off, ``left`` or ``right``; None is the model's own side.

        Raises:
            InputError: any other side.
        """
        if side is not None and side not in _SIDES:
            raise InputError(
                "`truncation_side` must be either 'left' or 'right'.", parameter="truncation_side", value=side
            )
        return side or self._side

    def resolve_limit(self, truncate_to: int | None, *, least: int) -> int | None:
        """Return how many tokens are kept, None for all of them.

        Args:
            truncate_to: As for ``encode``.
            least: The special tokens, which are always kept.

        Raises:
            InputError: more than the model's limit, or fewer than ``least``.
        """
        max_tokens = self._max_model_len if truncate_to == -1 else truncate_to
        problem = None
        if max_tokens is None:
            pass
        elif max_tokens > self._max_model_len:
            problem = (
                f"truncate_prompt_tokens={max_tokens} cannot be greater than max_total_tokens = {self._max_model_len}. "
                "Please request a smaller truncation size."
            )
        elif max_tokens < least:
            problem = (
                f"truncate_prompt_tokens={truncate_to} must be -1 (the model's limit, {self._max_model_len}) "
                f"or at least {least}, the number of special tokens."
            )
        if problem is not None:
            raise InputError(problem, parameter="truncate_prompt_tokens", value=truncate_to)
        return max_tokens

    def _check_stride(self, stride: int | None) -> None:
        most = self._max_model_len - self._num_special_tokens - 1
        if stride is not None and (type(stride) is not int or not 0 <= stride <= most):
            raise InputError(
                f"stride must be an int from 0 to {most}: a window has {self._max_model_len} tokens, "
                f"{self._num_special_tokens} of them special",
                parameter="stride",
                value=stride,
            )

    def check_length(self, num_tokens: int, suffix: str) -> None:
        """Check that there are tokens, and no more than the model takes; ``suffix`` ends the message.

        Raises:
            InputError: none, or too many.
        """
        if num_tokens == 0:
            raise InputError(
                f"The prompt cannot be empty: it has no token{suffix or '.'}", parameter="input_tokens", value=0
            )
        if num_tokens > self._max_model_len:
            raise InputError(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt contains "
                f"{num_tokens} input tokens, which exceeds this limit even without any output tokens. "
                f"Please reduce the length of the input prompt.{suffix}",
                parameter="input_tokens",
                value=num_tokens,
            )

    def check_ids(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Return token ids as an array (num_tokens,).

        Raises:
            InputError: not a flat list of int, or an id outside the vocabulary.
        """
        whole = np.asarray(ids)
        if whole.dtype.kind not in "iu" and all(type(token_id) is int for token_id in ids):
            # None at all, or too large for numpy's integers.
            whole = np.array(ids, dtype=object)
        elif whole.ndim != 1 or whole.dtype.kind not in "iu":
            raise InputError("token ids must be a flat list of int", parameter="prompt_token_ids")
        outside = whole[(whole < 0) | (whole >= self._vocab_size)]
        if outside.size:
            raise InputError(
                f"Token id {outside[0]} is out of vocabulary: ids run from 0 to {self._vocab_size - 1}.",
                parameter="prompt_token_ids",
                value=int(outside[0]),
            )
        return whole.astype(np.int64)

    def _measure_prompt(self, prompt: str, cut: _Cut) -> int:
        """Count the prompt's tokens as when it is tokenized and cut alone, less a special token at its end."""
        encoding = self.encode_batch([prompt], add_special_tokens=cut.add_special_tokens, first_index=0)[0]
        limit = self._max_model_len if cut.max_tokens is None else cut.max_tokens
        ids = (self._truncate(prompt, cut, limit) if len(encoding) > limit else encoding).ids
        return len(ids) - 1 if ids and ids[-1] in self._special_ids else len(ids)


def keep_ids(ids: NDArray[np.int64], num_tokens: int, side: str) -> NDArray[np.int64]:
    """Return at most so many token ids; ``side`` is where the others are cut off, ``left`` or ``right``."""
    return ids[:num_tokens] if side == "right" else ids[max(0, len(ids) - num_tokens) :]


def _check_unicode(texts: Sequence[str], first_index: int) -> None:
    for index, text in enumerate(texts, first_index):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {index} is not valid Unicode: {error.reason} at character {error.start}; replace it, "
                "for example with text.encode('utf-8', 'replace').decode()",
                parameter="texts",
                value=index,
            ) from error


def name_inputs(kind: str, count: int, first_index: int) -> list[str]:
    """Return what a message says about the place of each text or pair; nothing when the call is about one alone."""
    if count == 1 and first_index == 0:
        return [""]
    return [f" ({kind} {index})" for index in range(first_index, first_index + count)]
