"""The table of an inference-free SPLADE: read from a checkpoint, written into an artifact, its answers by torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.export.static_weights import read_weights
from poolgraph.export.tokenizer import UNLIMITED, load_tokenizer
from poolgraph.graphs.manifest import StaticQuery
from poolgraph.graphs.probe_files import SparseRow
from poolgraph.runtime.static_query import STATIC_QUERY_FILE


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
    own = load_tokenizer(checkpoint.folder / route.path, SentenceTransformer(), trust_remote_code=trust_remote_code)
    _check_tokenizers(own, tokenizer, route.path)
    limit = int(own.model_max_length)
    record = StaticQuery(
        file=STATIC_QUERY_FILE,
        max_tokens=limit if limit < UNLIMITED else None,
        default_route=route.default_route,
    )
    weights = read_weights(checkpoint, route.path, own, size)
    return StaticWeights(weights=weights, tokenizer=own, record=record)


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


def answer_queries(static: StaticWeights | None, texts: Sequence[str]) -> list[SparseRow] | None:
    """Answer queries by SparseStaticEmbedding's arithmetic in torch; None for artifacts without a table.

    Args:
        static: The table.
        texts: The queries, cut to the limit of the reference's tokenizer.
    """
    if static is None:
        return None
    answers = [_reference(static, text) for text in texts]
    return [(np.flatnonzero(answer).astype(np.int64), answer[np.flatnonzero(answer)]) for answer in answers]


def _reference(static: StaticWeights, text: str) -> NDArray[np.float32]:
    ids = static.tokenizer(text, truncation=True, add_special_tokens=False)["input_ids"]
    presence = torch.zeros(len(static.weights), dtype=torch.int64)
    presence[torch.tensor(ids, dtype=torch.int64)] = 1
    answer: NDArray[np.float32] = (presence * torch.from_numpy(static.weights)).numpy()
    return answer
