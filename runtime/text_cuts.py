"""Texts cut at the boundary of a token, so that the rest stays the caller's own characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import Encoding

from poolgraph.errors import InputError
from poolgraph.runtime.tokenizer import TextTokenizer

_CHUNK: Final = 256
"""Texts tokenized together: places of tokens take far more memory than their ids."""


@dataclass(frozen=True, slots=True)
class CutText:
    """The part of a text that is kept, and how many tokens were cut off."""

    text: str
    num_truncated_tokens: int = 0


def check_max_tokens(name: str, value: int | None, max_model_len: int) -> int | None:
    """Return a limit on the tokens of one text, None for no limit; 0 stands for none, as in vLLM.

    Raises:
        InputError: no count, or not less than the model's limit.
    """
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InputError(f"{name} must be a non-negative integer", parameter=name, value=value)
    if value >= max_model_len:
        raise InputError(
            f"{name} ({value}) must be less than max_model_len ({max_model_len}).", parameter=name, value=value
        )
    return value or None


def cut_texts(tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int | None) -> list[CutText]:
    """Keep the first tokens of each text, special tokens not counted.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts.
        max_tokens: Tokens kept of each; None keeps the texts whole.

    Returns:
        What is kept of each text. Tokenized again it has the tokens that were kept, but for tokenizers that merge
        otherwise at an end of a text.

    Raises:
        InputError: a text that the tokenizer refuses.
    """
    if max_tokens is None:
        return [CutText(text) for text in texts]
    cuts: list[CutText] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        encodings = tokenizer.encode_batch(chunk, add_special_tokens=False, first_index=start, offsets=True)
        cuts += [cut_text(text, encoding, max_tokens) for text, encoding in zip(chunk, encodings, strict=True)]
    return cuts


def cut_text(text: str, encoding: Encoding, max_tokens: int, *, side: str = "right") -> CutText:
    """Keep so many tokens of a text.

    Args:
        text: The text.
        encoding: Its tokens without special tokens, with their places.
        max_tokens: Tokens kept; fewer where the last one would share a character with the first that is cut.
        side: Where tokens are cut off, ``left`` or ``right``.
    """
    num_tokens = len(encoding)
    if num_tokens <= max_tokens:
        return CutText(text)
    places = encoding.offsets
    if side == "left":
        kept = _step_back([(-last, -first) for first, last in reversed(places)], max_tokens)
        part = text[places[-kept][0] :] if kept else ""
    else:
        kept = _step_back(places, max_tokens)
        part = text[: places[kept - 1][1]] if kept else ""
    return CutText(part, num_tokens - kept)


def _step_back(places: Sequence[tuple[int, int]], max_tokens: int) -> int:
    """Return the largest number of leading tokens, of at most ``max_tokens``, that ends between two characters."""
    kept = max_tokens
    while kept and places[kept - 1][1] > places[kept][0]:
        kept -= 1
    # A tokenizer may give its first tokens one place for all; then a part of a character is better than no text.
    return kept or max_tokens
