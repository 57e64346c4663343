"""The weights of a SparseStaticEmbedding: its tensor, or a JSON file of tokens and their weights, as OpenSearch's."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint, WeightFolder

_LARGEST: Final = float(np.finfo(np.float32).max)
_SHOWN: Final = 3
"""Tokens that a message names at most."""


def read_weights(
    checkpoint: Checkpoint, path: str, tokenizer: PreTrainedTokenizerBase, size: int | None
) -> NDArray[np.float32]:
    """Read the table of a SparseStaticEmbedding.

    Args:
        checkpoint: The checkpoint.
        path: The module's folder in it.
        tokenizer: The module's.
        size: Width of a document's embedding.

    Returns:
        (vocab_size,).

    Raises:
        ExportError: no table, one that does not fit the vocabulary, or values that are no finite numbers.
    """
    config = checkpoint.read_json(f"{path}/config.json") or {}
    file = config.get("path") if isinstance(config, dict) else None
    vocab_size = len(tokenizer.get_vocab())
    # Any other path means nothing to sentence-transformers.
    if isinstance(file, str) and file.endswith(".json"):
        weights = _read_json(checkpoint, path, file, tokenizer)
    else:
        weights = _read_tensor(checkpoint, path)
    if weights.shape != (vocab_size,) or vocab_size != size:
        raise ExportError(
            f"{PurePosixPath(path).name} has weights of shape {weights.shape}, its tokenizer a vocabulary of "
            f"{vocab_size} and documents weights of {size} words; the three must be equal"
        )
    if not np.isfinite(weights).all():
        token_id = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise ExportError(
            f"{PurePosixPath(path).name} has the weight {weights[token_id]} for token id {token_id}, which is no number"
        )
    return weights


def _read_tensor(checkpoint: Checkpoint, path: str) -> NDArray[np.float32]:
    tensors = WeightFolder(checkpoint.folder / path)
    if "weight" not in tensors.names:
        raise ExportError(f"{PurePosixPath(path).name} has no tensor 'weight', only {sorted(tensors.names)}")
    weights: NDArray[np.float32] = tensors.load("weight").to(torch.float32).numpy()
    return weights


def _read_json(checkpoint: Checkpoint, path: str, file: str, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.float32]:
    name = _find_file(checkpoint, path, file)
    content = checkpoint.read_json(name)
    _check_content(name, content)
    ids: Any = tokenizer.convert_tokens_to_ids(list(content))
    weights = np.zeros(len(tokenizer.get_vocab()), dtype=np.float32)
    unknown = [token for token, index in zip(content, ids, strict=True) if index is None or index >= len(weights)]
    if unknown:
        raise ExportError(
            f"{name} weighs {len(unknown)} tokens that the tokenizer in {path} does not have, among them "
            f"{unknown[:_SHOWN]}, and it has no unknown token for them"
        )
    # One by one: the last of several tokens with one id counts, and those that are unknown have one.
    for index, value in zip(ids, content.values(), strict=True):
        weights[index] = np.inf if abs(value) > _LARGEST else value
    return weights


def _find_file(checkpoint: Checkpoint, path: str, file: str) -> str:
    """Return where in the checkpoint the file is: in the module's folder, else in the checkpoint's own."""
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file:
        raise ExportError(
            f"{path}/config.json names the weights {file!r} outside the checkpoint; copy that file into {path} and "
            f"name it {pure.name!r} there"
        )
    places = list(dict.fromkeys(PurePosixPath(folder, file).as_posix() for folder in (path, "")))
    found = next((place for place in places if (checkpoint.folder / place).is_file()), None)
    if found is None:
        raise ExportError(f"{path}/config.json names the weights {file!r}, and there is none of {places}")
    return found


def _check_content(name: str, content: Any) -> None:
    if not isinstance(content, dict) or not content:
        raise ExportError(f"{name} must be a JSON object of tokens and their weights, at least one")
    wrong = [token for token, value in content.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if wrong:
        raise ExportError(
            f"{name} must have a number for each token; that of {wrong[0]!r} is {content[wrong[0]]!r} "
            f"({len(wrong)} of {len(content)} are none)"
        )
