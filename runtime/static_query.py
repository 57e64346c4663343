"""Queries of an inference-free SPLADE: each token that occurs has its weight in a table, and no graph runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.sparse import SparseEmbedding
from poolgraph.runtime.texts import check_texts
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.tasks import SIDES, Side

STATIC_QUERY_FILE: Final = "query_weights.npy"


def load_static_weights(directory: Path, manifest: Manifest) -> NDArray[np.float32] | None:
    """Read the table of an artifact, (vocab_size,); None where it has none.

    Raises:
        ArtifactError: no such file, or not a finite float32 a word of the vocabulary.
    """
    if manifest.static_query is None:
        return None
    name = manifest.static_query.file
    try:
        weights: NDArray[np.float32] = np.load(directory / name, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{name} cannot be read as the weights of queries: {error}") from error
    expected = (manifest.pooler.embedding_size,)
    if weights.dtype != np.float32 or weights.shape != expected or not np.isfinite(weights).all():
        raise ArtifactError(
            f"{name} must hold finite float32 of shape {expected}, a weight a word; it has {weights.dtype} of shape "
            f"{weights.shape}. Export the checkpoint again"
        )
    return weights


def resolve_route(manifest: Manifest, side: str | None) -> Side | None:
    """Return the route of texts; None for models that answer queries and documents alike.

    Args:
        manifest: The model's.
        side: ``query`` or ``document``; None takes the model's default route.

    Raises:
        InputError: another word, none where the model has no default route, or one where it has no routes.
    """
    static = manifest.static_query
    chosen = side if side is not None or static is None else static.default_route
    found = next((name for name in SIDES if name == chosen), None)
    if side is not None and found is None:
        raise InputError(f"side must be one of {list(SIDES)}, not {side!r}", parameter="side", value=side)
    if static is None and side is not None:
        raise InputError(
            f"{manifest.source.model!r} weighs queries and documents alike: leave out side, or name a prompt",
            parameter="side",
            value=side,
        )
    if static is not None and found is None:
        raise InputError(
            f"{manifest.source.model!r} weighs queries and documents differently and has no default route: say which "
            "they are, with side='query' or side='document', or call encode_query or encode_document",
            parameter="side",
        )
    return found


def find_limit(manifest: Manifest, side: str | None) -> int | None:
    """Return the tokens of the longest query, where the texts are queries of a table; None for the model's limit."""
    static = manifest.static_query
    is_query = static is not None and (side or static.default_route) == "query"
    return static.max_tokens if static is not None and is_query else None


def encode_queries(
    tokenizer: TextTokenizer,
    manifest: Manifest,
    texts: Sequence[str],
    *,
    prompt: str = "",
    truncate: bool = False,
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize queries without special tokens; a query may have no token at all.

    Args:
        tokenizer: The artifact's.
        manifest: Its manifest.
        texts: The queries.
        prompt: Put before each of them.
        truncate: Cut longer queries to the limit of queries instead of refusing them.
        first_index: Index of the first text in the caller's own list, for messages.

    Raises:
        InputError: not a str, or a query that is too long.
    """
    assert manifest.static_query is not None
    check_texts(texts, first_index=first_index)
    encodings = tokenizer.encode_batch(
        [prompt + text for text in texts], add_special_tokens=False, first_index=first_index
    )
    limit, side = manifest.static_query.max_tokens, manifest.tokenization.truncation_side
    queries = []
    for index, encoding in enumerate(encodings, first_index):
        num_tokens = len(encoding)
        if limit is not None and num_tokens > limit:
            if not truncate:
                raise InputError(
                    f"query {index} has {num_tokens} tokens and the limit of queries is {limit}; shorten it, or pass "
                    "truncate=True",
                    parameter="texts",
                    value=index,
                )
            encoding.truncate(limit, direction=side)
        ids = np.array(encoding.ids, dtype=np.int64)
        queries.append(EncodedText(input_ids=ids, token_type_ids=None, num_truncated_tokens=num_tokens - len(ids)))
    return queries


def weigh_tokens(input_ids: NDArray[np.int64], weights: NDArray[np.float32]) -> SparseEmbedding:
    """Return the weights of the tokens that occur, each once, without those that are 0.

    Args:
        input_ids: (num_tokens,).
        weights: (vocab_size,).
    """
    tokens = np.unique(input_ids)
    indices = tokens[weights[tokens] != 0]
    return SparseEmbedding(indices=indices, values=weights[indices], size=len(weights))
