"""Texts to token ids with the artifact's ``tokenizer.json``; safe to use from several threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, normalizers

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.texts import check_texts

TOKENIZER_FILE = "tokenizer.json"

_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """One text as the graphs take it.

    Attributes:
        input_ids: (num_tokens,) int64.
        token_type_ids: (num_tokens,) int64, None for models without them.
        num_truncated_tokens: Tokens cut off to fit.
        prompt_length: Leading tokens of the prompt, counted only when the pooler leaves the prompt out.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None
    num_truncated_tokens: int = 0
    prompt_length: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens kept, special tokens included."""
        return len(self.input_ids)


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
        encodings = self._encode_batch(prompted, add_special_tokens=add_special_tokens, first_index=first_index)
        prompt_length = self._count_prompt(prompt, cut) if prompt and self._with_prompt_length else 0
        suffixes = _name_texts(len(texts), first_index)
        return [
            self._finish(text, encoding, cut, prompt_length, suffix)
            for text, encoding, suffix in zip(prompted, encodings, suffixes, strict=True)
        ]

    def encode_ids(
        self, ids: Sequence[int], *, truncate_to: int | None = None, truncation_side: str | None = None
    ) -> EncodedText:
        """Take token ids as they are: sliced to ``truncate_to``, never repaired with special tokens.

        Raises:
            InputError: no ids, an id outside the vocabulary, or too many of them without ``truncate_to``.
        """
        cut = self._resolve_cut(truncate_to, truncation_side, add_special_tokens=False)
        whole = self._check_ids(ids)
        kept = whole if cut.max_tokens is None else _slice_ids(whole, cut.max_tokens, cut.side)
        self._check_length(len(kept), "")
        return EncodedText(
            input_ids=kept,
            token_type_ids=np.zeros_like(kept) if self._with_types else None,
            num_truncated_tokens=len(whole) - len(kept),
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, special tokens included, whatever the model's limit."""
        check_texts(texts)
        return [len(encoding) for encoding in self._encode_batch(texts, add_special_tokens=True, first_index=0)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=True))

    def _encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool, first_index: int) -> list[Encoding]:
        try:
            return list(self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens))
        except Exception as error:
            _check_unicode(texts, first_index)
            raise InputError(f"the tokenizer refused the texts: {error}", parameter="texts") from error

    def _finish(self, text: str, encoding: Encoding, cut: _Cut, prompt_length: int, suffix: str) -> EncodedText:
        num_tokens = len(encoding)
        if cut.max_tokens is not None and num_tokens > cut.max_tokens:
            encoding = self._truncate(text, cut, cut.max_tokens)
        self._check_length(len(encoding), suffix)
        kept = len(encoding)
        return EncodedText(
            input_ids=np.array(encoding.ids, dtype=np.int64),
            token_type_ids=np.array(encoding.type_ids, dtype=np.int64) if self._with_types else None,
            num_truncated_tokens=num_tokens - kept,
            prompt_length=min(prompt_length, kept),
        )

    def _truncate(self, text: str, cut: _Cut, max_tokens: int) -> Encoding:
        """Cut before the special tokens are added, as the tokenizer's own truncation does, without its shared state."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        num_special = self._num_special_tokens if cut.add_special_tokens else 0
        encoding.truncate(max(0, max_tokens - num_special), direction=cut.side)
        return self._tokenizer.post_process(encoding, add_special_tokens=cut.add_special_tokens)

    def _resolve_cut(self, truncate_to: int | None, side: str | None, *, add_special_tokens: bool) -> _Cut:
        if side is not None and side not in _SIDES:
            raise InputError(
                "`truncation_side` must be either 'left' or 'right'.", parameter="truncation_side", value=side
            )
        max_tokens = self._max_model_len if truncate_to == -1 else truncate_to
        least = self._num_special_tokens if add_special_tokens else 0
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
        return _Cut(max_tokens=max_tokens, side=side or self._side, add_special_tokens=add_special_tokens)

    def _check_length(self, num_tokens: int, suffix: str) -> None:
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

    def _check_ids(self, ids: Sequence[int]) -> NDArray[np.int64]:
        whole = np.asarray(ids)
        if whole.size and (whole.ndim != 1 or whole.dtype.kind not in "iu"):
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
        encoding = self._encode_batch([prompt], add_special_tokens=cut.add_special_tokens, first_index=0)[0]
        limit = self._max_model_len if cut.max_tokens is None else cut.max_tokens
        ids = (self._truncate(prompt, cut, limit) if len(encoding) > limit else encoding).ids
        return len(ids) - 1 if ids and ids[-1] in self._special_ids else len(ids)


def load_tokenizer(path: Path, *, lower_case: bool = False) -> Tokenizer:
    """Read a ``tokenizer.json``; ``lower_case`` puts a lowercasing step before its normalizer.

    Raises:
        ArtifactError: the file is missing or is no tokenizer.
    """
    if not path.is_file():
        raise ArtifactError(f"{path.name} is missing from the artifact {path.parent}; export the checkpoint again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read as a tokenizer: {error}") from error
    if lower_case:
        steps = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _slice_ids(ids: NDArray[np.int64], max_tokens: int, side: str) -> NDArray[np.int64]:
    return ids[:max_tokens] if side == "right" else ids[max(0, len(ids) - max_tokens) :]


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


def _name_texts(num_texts: int, first_index: int) -> Iterator[str]:
    """Yield what a message says about each text's place; nothing when the call is about one text alone."""
    if num_texts == 1 and first_index == 0:
        yield ""
        return
    for index in range(first_index, first_index + num_texts):
        yield f" (text {index})"
