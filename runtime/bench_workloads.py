"""What engines are asked in a benchmark: texts of exact token counts, and texts of mixed lengths."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from poolgraph.errors import InputError

Count: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""Texts to their numbers of tokens, special tokens included, whatever the model's limit."""

MIXED: Final = "mixed"
NUM_MIXED: Final = 128
"""Passages of the built-in mixed workload: enough lengths for batches to form, few enough for a large model."""

DEFAULT_WORKLOADS: Final = ("1x16", "1x128", "8x128", "32x128", "8x512", MIXED)

MOST_TEXTS: Final = 4096
"""Texts of a uniform workload at most: more than that are cut into windows anyway."""

_SHAPE: Final = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_WORD: Final = re.compile(r"[a-z]{2,}")
_FILLERS: Final = ("a", "the", "of", "1", ".")
_QUERY_WORDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What an engine is given in one call.

    Attributes:
        name: ``mixed``, or texts times tokens such as ``8x128``.
        texts: The texts; the documents where pairs are scored.
        lengths: Tokens of each input, special tokens included, cut at the model's limit.
        queries: The query of each document; empty where texts are asked alone.
    """

    name: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    queries: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(self.lengths)

    @property
    def digest(self) -> str:
        """Hash of the texts, so that stored answers are known to belong to them."""
        return sha256("\0".join((*self.queries, *self.texts)).encode()).hexdigest()


def parse_shape(name: str) -> tuple[int, int] | None:
    """Return texts and tokens of a name such as ``8x128``; None for ``mixed``.

    Raises:
        InputError: no name of a workload.
    """
    if name == MIXED:
        return None
    match = _SHAPE.fullmatch(name)
    if match is None or int(match[1]) > MOST_TEXTS:
        raise InputError(
            f"{name!r} is no workload: write texts times tokens as in 8x128, at most {MOST_TEXTS} texts, or {MIXED}",
            parameter="workloads",
            value=name,
        )
    return int(match[1]), int(match[2])


def find_words(passages: Sequence[str]) -> list[str]:
    """Return the plain words of passages: lower case and apart, so that most tokenizers count each by itself."""
    return [word for passage in passages for word in _WORD.findall(passage)]


def build_texts(count: Count, words: Sequence[str], *, num_texts: int, num_tokens: int) -> list[str] | None:
    """Build texts of exactly ``num_tokens`` tokens, each from where the one before it ended.

    Args:
        count: Counts the tokens of texts.
        words: What they are made of.
        num_texts: How many.
        num_tokens: Tokens of each.

    Returns:
        The texts; None where no text has so many tokens, as below the number of special ones.
    """
    texts: list[str] = []
    start = 0
    while len(texts) < num_texts:
        chosen, fillers = _fill(count, [words[(start + index) % len(words)] for index in range(num_tokens)], num_tokens)
        text = " ".join([*chosen, *fillers])
        if count([text])[0] != num_tokens:
            return None
        texts.append(text)
        start += max(1, len(chosen))
    return texts


def _fill(count: Count, words: Sequence[str], num_tokens: int) -> tuple[list[str], list[str]]:
    """Return as many words as fit, and the short ones that fill up what the next word is too long for."""
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count([" ".join(words[:middle])])[0] <= num_tokens else (low, middle - 1)
    chosen, fillers = list(words[:low]), list[str]()
    have = count([" ".join(chosen)])[0]
    while have < num_tokens:
        fitting = (filler for filler in _FILLERS if count([" ".join([*chosen, *fillers, filler])])[0] == have + 1)
        filler = next(fitting, None)
        if filler is None:
            break
        fillers.append(filler)
        have += 1
    return chosen, fillers


def pair_passages(passages: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return queries and documents: the first words of each passage, against that passage or the one after it."""
    queries = tuple(" ".join(passage.split()[:_QUERY_WORDS]) for passage in passages)
    documents = tuple(passages[(index + index % 2) % len(passages)] for index in range(len(passages)))
    return queries, documents


def select_evenly(items: Sequence[str], count: int) -> tuple[str, ...]:
    """Return ``count`` evenly spaced items, in order."""
    if not 0 < count <= len(items):
        raise ValueError(f"count is {count}; there are {len(items)} items to choose from")
    return tuple(items[index * len(items) // count] for index in range(count))


def save_workloads(path: Path, workloads: Sequence[Workload]) -> None:
    """Write workloads as JSON, so that every engine's process reads the same texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(list(workloads)))


def load_workloads(path: Path) -> list[Workload]:
    """Read what ``save_workloads`` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=list[Workload])
