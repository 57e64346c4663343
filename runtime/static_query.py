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
from poolgraph.runtime.texts import TO_MODEL_LIMIT, check_texts
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer, keep_ids
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


def name_side(manifest: Manifest, side: str | None, prompt_name: str | None) -> str | None:
    """Return the side that a caller names: ``side`` itself, else that whose prompt is named, of models with routes.

    Args:
        manifest: The model's.
        side: As the caller gives it.
        prompt_name: Name of a prompt; ``query`` and ``document`` say what the texts are.
    """
    named = isinstance(prompt_name, str) and prompt_name in SIDES and manifest.static_query is not None
    return prompt_name if side is None and named else side


def choose_route(manifest: Manifest, side: str | None) -> Side | None:
    """Return the route as ``resolve_route`` does, but that of documents where neither caller nor model says it."""
    static = manifest.static_query
    is_open = static is not None and side is None and static.default_route is None
    return resolve_route(manifest, "document" if is_open else side)


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
    truncate_to: int | None = None,
    truncation_side: str | None = None,
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize queries without special tokens; a query may have no token at all.

    Args:
        tokenizer: The artifact's.
        manifest: Its manifest.
        texts: The queries.
        prompt: Put before each of them.
        truncate_to: Tokens kept of a longer query; -1 for the limit of queries, None refuses what is longer than that.
        truncation_side: Where tokens are cut off, ``left`` or ``right``; None is the model's own side.
        first_index: Index of the first text in the caller's own list, for messages.

    Raises:
        InputError: not a str, or a query that is too long.
    """
    assert manifest.static_query is not None
    check_texts(texts, first_index=first_index)
    encodings = tokenizer.encode_batch(
        [prompt + text for text in texts], add_special_tokens=False, first_index=first_index
    )
    limit, side = _choose_limit(tokenizer, manifest, truncate_to), tokenizer.resolve_truncation_side(truncation_side)
    queries = []
    for index, encoding in enumerate(encodings, first_index):
        num_tokens = len(encoding)
        if limit is not None and num_tokens > limit:
            if truncate_to is None:
                raise _too_long(index, num_tokens, limit)
            encoding.truncate(limit, direction=side)
        ids = np.array(encoding.ids, dtype=np.int64)
        queries.append(EncodedText(input_ids=ids, token_type_ids=None, num_truncated_tokens=num_tokens - len(ids)))
    return queries


def encode_query_ids(
    tokenizer: TextTokenizer,
    manifest: Manifest,
    ids: Sequence[int],
    *,
    truncate_to: int | None = None,
    truncation_side: str | None = None,
    index: int = 0,
) -> EncodedText:
    """Take the token ids of one query as they are; arguments and errors as of ``encode_queries``.

    Raises:
        InputError: also ids outside the vocabulary, or none.
    """
    whole = tokenizer.check_ids(ids)
    if not whole.size:
        raise InputError(f"query {index} has no token id", parameter="prompt_token_ids", value=index)
    limit, side = _choose_limit(tokenizer, manifest, truncate_to), tokenizer.resolve_truncation_side(truncation_side)
    kept = whole if limit is None else keep_ids(whole, limit, side)
    num_cut = len(whole) - len(kept)
    if num_cut and truncate_to is None:
        raise _too_long(index, len(whole), len(kept))
    return EncodedText(input_ids=kept, token_type_ids=None, num_truncated_tokens=num_cut)


def _choose_limit(tokenizer: TextTokenizer, manifest: Manifest, truncate_to: int | None) -> int | None:
    """Return how many tokens of a query are kept, None for all: as many as asked for, within the limit of queries."""
    assert manifest.static_query is not None
    own = manifest.static_query.max_tokens
    if truncate_to is None or truncate_to == TO_MODEL_LIMIT:
        return own
    asked = tokenizer.resolve_limit(truncate_to, least=0)
    return asked if own is None or asked is None else min(asked, own)


def _too_long(index: int, num_tokens: int, limit: int) -> InputError:
    return InputError(
        f"query {index} has {num_tokens} tokens and the limit of queries is {limit}; shorten it, or ask for truncation "
        "(truncate=True, or truncate_prompt_tokens=-1)",
        parameter="texts",
        value=index,
    )


def weigh_rows(queries: Sequence[EncodedText], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights of each query's tokens, (num_queries, vocab_size), 0 for words that do not occur.

    Args:
        queries: Of ``encode_queries``.
        weights: (vocab_size,).
    """
    rows = np.zeros((len(queries), len(weights)), dtype=np.float32)
    for row, query in zip(rows, queries, strict=True):
        row[query.input_ids] = weights[query.input_ids]
    return rows


def weigh_tokens(input_ids: NDArray[np.int64], weights: NDArray[np.float32]) -> SparseEmbedding:
    """Return the weights of the tokens that occur, each once, without those that are 0.

    Args:
        input_ids: (num_tokens,).
        weights: (vocab_size,).
    """
    tokens = np.unique(input_ids)
    indices = tokens[weights[tokens] != 0]
    return SparseEmbedding(indices=indices, values=weights[indices], size=len(weights))
