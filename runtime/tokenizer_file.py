"""An artifact's ``tokenizer.json``, and what can be learned of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, normalizers

from poolgraph.errors import ArtifactError

TOKENIZER_FILE: Final = "tokenizer.json"


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


def types_texts(tokenizer: Tokenizer) -> bool:
    """Whether a single text has token types other than 0: reading them takes as long as reading the ids."""
    try:
        encoding = tokenizer.encode("a b")
    except Exception:  # a vocabulary without these words
        return True
    return any(encoding.type_ids) or all(encoding.special_tokens_mask)
