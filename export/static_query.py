"""The table of an inference-free SPLADE: read from a checkpoint, written into an artifact, its answers checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint, WeightFolder
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.export.tokenizer import UNLIMITED, load_tokenizer
from poolgraph.graphs.manifest import CheckRow, Manifest, StaticQuery
from poolgraph.runtime.static_query import STATIC_QUERY_FILE, encode_queries, load_static_weights, weigh_tokens
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticWeights:
    """The table and what the manifest says of it.

    Attributes:
        weights: (vocab_size,) float32.
        tokenizer: The reference's tokenizer of queries.
        record: What the manifest says.
    """

    weights: NDArray[np.float32]
    tokenizer: PreTrainedTokenizerBase
    record: StaticQuery


def plan_static_query(
    checkpoint: Checkpoint,
    sentence: SentenceTransformer,
    tokenizer: PreTrainedTokenizerBase,
    size: int | None,
    *,
    trust_remote_code: bool,
) -> StaticWeights | None:
    """Read the table of a checkpoint's SparseStaticEmbedding; None for checkpoints without one.

    Args:
        checkpoint: The checkpoint.
        sentence: Its sentence-transformers files.
        tokenizer: The reference's tokenizer of documents.
        size: Width of a document's embedding.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        ExportError: no table, one that does not fit the vocabulary, or a tokenizer that is not that of documents.
    """
    route = sentence.static_query
    if route is None:
        return None
    if (checkpoint.read_json(f"{route.path}/config.json") or {}).get("path") is not None:
        raise ExportError(
            f"{route.path}/config.json names a file of weights by 'path'; save the model anew to export it"
        )
    own = load_tokenizer(checkpoint.folder / route.path, SentenceTransformer(), trust_remote_code=trust_remote_code)
    _check_tokenizers(own, tokenizer, route.path)
    limit = int(own.model_max_length)
    record = StaticQuery(
        file=STATIC_QUERY_FILE,
        max_tokens=limit if limit < UNLIMITED else None,
        default_route=route.default_route,
    )
    weights = _read_weights(checkpoint.folder / route.path, len(own.get_vocab()), size)
    return StaticWeights(weights=weights, tokenizer=own, record=record)


def _read_weights(folder: Path, vocab_size: int, size: int | None) -> NDArray[np.float32]:
    tensors = WeightFolder(folder)
    if "weight" not in tensors.names:
        raise ExportError(f"{folder.name} has no tensor 'weight', only {sorted(tensors.names)}")
    weights: NDArray[np.float32] = tensors.load("weight").to(torch.float32).numpy()
    if weights.shape != (vocab_size,) or vocab_size != size:
        raise ExportError(
            f"{folder.name} has weights of shape {weights.shape}, its tokenizer a vocabulary of {vocab_size} and "
            f"documents weights of {size} words; the three must be equal"
        )
    if not np.isfinite(weights).all():
        token_id = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise ExportError(
            f"{folder.name} has the weight {weights[token_id]} for token id {token_id}, which is no number"
        )
    return weights


def _check_tokenizers(queries: PreTrainedTokenizerBase, documents: PreTrainedTokenizerBase, path: str) -> None:
    """Check that one tokenizer.json does for both; limits aside, which are numbers of the manifest."""
    saved = []
    for tokenizer in (queries, documents):
        backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        saved.append((backend.to_str(), tokenizer.truncation_side))
    if saved[0] != saved[1]:
        raise ExportError(
            f"the tokenizer of queries, in {path}, is not that of documents; an artifact has one for both"
        )


def save_static_query(static: StaticWeights | None, directory: Path) -> None:
    """Write the table into an artifact's directory."""
    if static is not None:
        np.save(directory / STATIC_QUERY_FILE, static.weights, allow_pickle=False)


def check_static_query(
    static: StaticWeights | None, directory: Path, manifest: Manifest, texts: Sequence[str]
) -> list[CheckRow]:
    """Compare the runtime's answers to queries with SparseStaticEmbedding's arithmetic in torch, exactly.

    The cosine column holds the share of equal answers; no row for artifacts without a table.
    """
    if static is None:
        return []
    weights = load_static_weights(directory, manifest)
    assert weights is not None
    queries = encode_queries(TextTokenizer(directory, manifest), manifest, texts, truncate_to=TO_MODEL_LIMIT)
    found = [weigh_tokens(query.input_ids, weights).to_dense() for query in queries]
    expected = [_reference(static, text) for text in texts]
    equal = sum(np.array_equal(own, other) for own, other in zip(found, expected, strict=True))
    difference = max(float(np.abs(own - other).max()) for own, other in zip(found, expected, strict=True))
    return [
        CheckRow(
            variant="queries",
            family="weights",
            check="equal weights",
            num_texts=len(texts),
            min_cosine=equal / len(texts),
            max_difference=difference,
            required_cosine=1.0,
            allowed_difference=0.0,
            passed=equal == len(texts),
        )
    ]


def _reference(static: StaticWeights, text: str) -> NDArray[np.float32]:
    ids = static.tokenizer(text, truncation=True, add_special_tokens=False)["input_ids"]
    presence = torch.zeros(len(static.weights), dtype=torch.int64)
    presence[torch.tensor(ids, dtype=torch.int64)] = 1
    answer: NDArray[np.float32] = (presence * torch.from_numpy(static.weights)).numpy()
    return answer
