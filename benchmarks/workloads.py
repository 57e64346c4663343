"""What every engine is asked to embed: texts of exact token counts, and a corpus of mixed lengths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import cycle
from pathlib import Path

from tokenizers import Tokenizer

UNIFORM_SHAPES = {
    "1x16": (1, 16),
    "1x128": (1, 128),
    "1x512": (1, 512),
    "8x128": (8, 128),
    "32x128": (32, 128),
    "8x512": (8, 512),
}
MIXED = "mixed"
WORKLOAD_NAMES = (*UNIFORM_SHAPES, MIXED)
NUM_CALIBRATION_PASSAGES = 300

_WORD = re.compile(r"[a-z]{2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Texts given to an engine in one call; ``num_tokens`` counts special tokens and ends at the model's limit."""

    name: str
    texts: tuple[str, ...]
    num_tokens: int

    @property
    def digest(self) -> str:
        """Hash of the texts, so that a stored reference is known to belong to them."""
        return sha256("\0".join(self.texts).encode()).hexdigest()


def load_tokenizer(checkpoint_dir: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer, truncating at its ``max_seq_length`` and without padding."""
    settings = json.loads((checkpoint_dir / "sentence_bert_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=settings["max_seq_length"])
    return tokenizer


def build_workloads(tokenizer: Tokenizer, passages: Sequence[str], num_mixed: int) -> list[Workload]:
    """Build every workload from ``passages``; the mixed one is an evenly spaced subset of ``num_mixed`` of them."""
    words = _walk_words(tokenizer, passages)
    uniform = [
        build_uniform(name, tokenizer, words, num_texts=num_texts, num_tokens=num_tokens)
        for name, (num_texts, num_tokens) in UNIFORM_SHAPES.items()
    ]
    return [*uniform, build_mixed(tokenizer, passages, num_mixed)]


def build_uniform(
    name: str, tokenizer: Tokenizer, words: Iterator[tuple[str, int]], *, num_texts: int, num_tokens: int
) -> Workload:
    """Build ``num_texts`` texts of exactly ``num_tokens`` tokens, special tokens included."""
    room = num_tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
    texts = tuple(_fill(words, room) for _ in range(num_texts))
    counts = {len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))}
    if counts != {num_tokens}:
        raise ValueError(
            f"workload {name} has texts of {sorted(counts)} tokens, wanted {num_tokens}; is the limit lower?"
        )
    return Workload(name=name, texts=texts, num_tokens=num_texts * num_tokens)


def build_mixed(tokenizer: Tokenizer, passages: Sequence[str], num_mixed: int) -> Workload:
    """Take ``num_mixed`` evenly spaced passages of those that calibration leaves."""
    texts = select_evenly(passages[:-NUM_CALIBRATION_PASSAGES], num_mixed)
    num_tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts)))
    return Workload(name=MIXED, texts=texts, num_tokens=num_tokens)


def select_calibration(passages: Sequence[str]) -> tuple[str, ...]:
    """Return the held-out tail of the corpus, which no workload contains."""
    return tuple(passages[-NUM_CALIBRATION_PASSAGES:])


def select_evenly(items: Sequence[str], count: int) -> tuple[str, ...]:
    """Return ``count`` evenly spaced items, in order."""
    if not 0 < count <= len(items):
        raise ValueError(f"count is {count}; there are {len(items)} items to choose from")
    return tuple(items[index * len(items) // count] for index in range(count))


def save_workloads(path: Path, workloads: Sequence[Workload]) -> None:
    """Write workloads as JSON, so that every engine's process reads the same texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(workload) for workload in workloads]))


def load_workloads(path: Path) -> list[Workload]:
    """Read what ``save_workloads`` wrote."""
    return [Workload(**row | {"texts": tuple(row["texts"])}) for row in json.loads(path.read_text())]


def _walk_words(tokenizer: Tokenizer, passages: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the passages' plain words with their token counts, again and again.

    The words are lower case and apart, so that the counts add up in a word-piece tokenizer.
    """
    words = [word for passage in passages for word in _WORD.findall(passage)]
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(words, add_special_tokens=False)]
    if 1 not in counts:
        raise ValueError(f"none of the corpus' {len(words)} words is a single token, so exact counts cannot be reached")
    return cycle(zip(words, counts, strict=True))


def _fill(words: Iterator[tuple[str, int]], room: int) -> str:
    chosen = []
    while room:
        word, num_tokens = next(words)
        if num_tokens <= room:
            chosen.append(word)
            room -= num_tokens
    return " ".join(chosen)
