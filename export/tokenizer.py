"""The tokenizer: always a ``tokenizer.json`` in the artifact that gives the ids of the reference's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from poolgraph.errors import ExportError
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.runtime.tokenizer_file import TOKENIZER_FILE

UNLIMITED = 1_000_000
"""Transformers writes numbers far beyond this as model_max_length where a tokenizer knows no limit."""

MAX_ADDED_PROBES = 2000
"""Added tokens that are compared one by one; tokenizer_config.json may add some that tokenizer.json lacks."""


def load_tokenizer(
    folder: Path,
    sentence: SentenceTransformer,
    *,
    trust_remote_code: bool,
    config: PretrainedConfig | None = None,
) -> PreTrainedTokenizerBase:
    """Load the reference's tokenizer, lower-casing where sentence-transformers' files ask for it.

    Args:
        folder: Where its files are.
        sentence: The sentence-transformers files.
        trust_remote_code: Whether the checkpoint's own code may run.
        config: Stands in for a ``config.json`` that transformers cannot read.

    Raises:
        ExportError: it cannot be loaded, or has no form in the tokenizers library.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=trust_remote_code, **sentence.tokenizer_options
        )
    except Exception as error:
        raise ExportError(f"the checkpoint's tokenizer cannot be loaded: {error}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ExportError(
            f"{type(tokenizer).__name__} has no form in the tokenizers library, so it cannot run without Python code"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # transformers builds an empty tokenizer where there are no files; every word would be unknown to both sides.
        raise ExportError("the checkpoint has no tokenizer: nothing but special tokens is in its vocabulary")
    if sentence.do_lower_case:
        _add_lowercase(tokenizer.backend_tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Path, directory: Path, probes: list[str]) -> None:
    """Put ``tokenizer.json`` into ``directory``: the checkpoint's if it gives the reference's ids, else a new one."""
    own = source / TOKENIZER_FILE
    target = directory / TOKENIZER_FILE
    added = [f"a {token} b" for token in list(tokenizer.get_added_vocab())[:MAX_ADDED_PROBES]]
    if own.is_file() and _same_ids(Tokenizer.from_file(str(own)), tokenizer.backend_tokenizer, probes + added):
        shutil.copyfile(own, target)
        return
    converted = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    converted.no_truncation()
    converted.no_padding()
    target.write_text(json.dumps(json.loads(converted.to_str()), ensure_ascii=False, indent=1), encoding="utf-8")


def _same_ids(first: Tokenizer, second: Tokenizer, probes: list[str]) -> bool:
    copies = [Tokenizer.from_str(tokenizer.to_str()) for tokenizer in (first, second)]
    for copy in copies:
        copy.no_truncation()
        copy.no_padding()
    ids = [[(e.ids, e.type_ids) for e in copy.encode_batch(probes)] for copy in copies]
    return ids[0] == ids[1]


def _add_lowercase(tokenizer: Tokenizer) -> None:
    if _lowercases(json.loads(tokenizer.to_str())["normalizer"]):
        return
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = Sequence([Lowercase(), *own])


def _lowercases(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        return any(_lowercases(part) for part in normalizer["normalizers"])
    return normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))
