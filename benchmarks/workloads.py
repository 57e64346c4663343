"""What every engine is asked to embed: texts of exact token counts, and a corpus of mixed lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from poolgraph.runtime.bench_workloads import MIXED, Workload, build_texts, find_words, parse_shape, select_evenly

UNIFORM_SHAPES = ("1x16", "1x128", "1x512", "8x128", "32x128", "8x512")
WORKLOAD_NAMES = (*UNIFORM_SHAPES, MIXED)
NUM_CALIBRATION_PASSAGES = 300

CORPUS = ("numpy", "torch", "transformers")
CORPUS_FILES = 150
"""Packages whose docstrings are the passages, and files read of each."""


def load_tokenizer(checkpoint_dir: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer, truncating at its ``max_seq_length`` and without padding."""
    settings = json.loads((checkpoint_dir / "sentence_bert_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=settings["max_seq_length"])
    return tokenizer


def build_workloads(tokenizer: Tokenizer, passages: Sequence[str], num_mixed: int) -> list[Workload]:
    """Build every workload from ``passages``; the mixed one is an evenly spaced subset of ``num_mixed`` of them."""
    words = find_words(passages)
    uniform = [build_uniform(name, tokenizer, words) for name in UNIFORM_SHAPES]
    return [*uniform, build_mixed(tokenizer, passages, num_mixed)]


def build_uniform(name: str, tokenizer: Tokenizer, words: Sequence[str]) -> Workload:
    """Build texts of exactly as many tokens as the name says, special tokens included."""
    shape = parse_shape(name)
    assert shape is not None
    num_texts, num_tokens = shape
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    texts = build_texts(lambda it: count_tokens(whole, it), words, num_texts=num_texts, num_tokens=num_tokens)
    if texts is None:
        raise ValueError(f"workload {name}: no text of {num_tokens} tokens can be made of the corpus' words")
    counts = {*count_tokens(tokenizer, texts)}
    if counts != {num_tokens}:
        raise ValueError(
            f"workload {name} has texts of {sorted(counts)} tokens, wanted {num_tokens}; is the limit lower?"
        )
    return Workload(name=name, texts=tuple(texts), lengths=(num_tokens,) * num_texts)


def build_mixed(tokenizer: Tokenizer, passages: Sequence[str], num_mixed: int) -> Workload:
    """Take ``num_mixed`` evenly spaced passages of those that calibration leaves."""
    texts = select_evenly(passages[:-NUM_CALIBRATION_PASSAGES], num_mixed)
    return Workload(name=MIXED, texts=texts, lengths=tuple(count_tokens(tokenizer, texts)))


def select_calibration(passages: Sequence[str]) -> tuple[str, ...]:
    """Return the held-out tail of the corpus, which no workload contains."""
    return tuple(passages[-NUM_CALIBRATION_PASSAGES:])


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Count tokens as the tokenizer cuts them."""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
