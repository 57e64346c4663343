"""The texts of the online benchmark, no two alike, and the requests that carry them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from random import Random

from tokenizers import Encoding, Tokenizer

SHORTEST, LONGEST = 16, 64
"""Tokens of a text, special tokens included."""

_SPECIAL_TOKENS = 2
_WINDOWS_PER_TEXT = 3
"""Windows drawn for each text wanted: some are the same as others, or not of the length that they should be."""


def build_texts(tokenizer: Tokenizer, passages: Sequence[str], number: int, *, seed: int = 0) -> list[str]:
    """Cut ``number`` different texts of 16 to 64 tokens, every length as likely, out of passages.

    Raises:
        ValueError: the passages have too few.
    """
    draw = Random(seed)
    encodings = [
        (passage, encoding)
        for passage, encoding in zip(passages, tokenizer.encode_batch(list(passages)), strict=True)
        if len(encoding.ids) > LONGEST
    ]
    found: dict[str, None] = {}
    for _ in range(_WINDOWS_PER_TEXT):
        windows = list(_cut_windows(encodings, number, draw))
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast([text for text, _ in windows])]
        found |= {text: None for (text, length), seen in zip(windows, lengths, strict=True) if length == seen}
        if len(found) >= number:
            return list(found)[:number]
    raise ValueError(f"the passages have {len(found)} texts, wanted {number}; measure fewer seconds")


def _cut_windows(encodings: Sequence[tuple[str, Encoding]], number: int, draw: Random) -> Iterator[tuple[str, int]]:
    """Yield windows that begin at words, and the tokens that each should have."""
    for _ in range(number):
        passage, encoding = draw.choice(encodings)
        length = draw.randint(SHORTEST, LONGEST)
        first = draw.randint(1, len(encoding.ids) - length + 1)
        last = first + length - _SPECIAL_TOKENS - 1
        yield passage[encoding.offsets[first][0] : encoding.offsets[last][1]], length


def build_request(path: str, model: str, text: str) -> bytes:
    """Return the bytes of a request for one vector, on a connection that stays open."""
    body = json.dumps({"model": model, "input": text}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
