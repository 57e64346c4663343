"""Scores of models that answer queries and documents by a route for each: by the similarity that their files name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Manifest, Scoring
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.score_embedded import EmbedScorer, Vectors
from poolgraph.runtime.score_options import ScoreOptions, cut_side
from poolgraph.runtime.similarity import similarity_pairs
from poolgraph.tasks import Side

if TYPE_CHECKING:
    from poolgraph.runtime.task_embed import EmbedTasks

_STEP_VALUES: Final = 2**22
"""Numbers of a side's embeddings that are compared, and of the streamed side's that are there, at a time."""


def choose_scorer(scoring: Scoring, manifest: Manifest) -> str:
    """Return which scorer answers: that of the kind of scoring, or ``routes`` where each side has its own."""
    has_routes = scoring.kind == "bi_encoder" and manifest.static_query is not None
    return "routes" if has_routes else scoring.kind


def find_side_prompt(manifest: Manifest, side: Side) -> str:
    """Return what sentence-transformers' ``encode_query`` or ``encode_document`` puts before a text of a side."""
    return manifest.prompts.get(side, "")


def compare_routes(model: EmbedTasks, options: ScoreOptions, on_progress: Progress | None) -> EmbedScorer:
    """Return what scores pairs as ``encode_query``, ``encode_document`` and ``similarity`` do."""
    manifest = model.manifest

    def embed(side: Side, texts: list[str]) -> tuple[Vectors, int]:
        rows, num_cut = model.embed_chunk(
            cut_side(model.tokenizer, side, texts, options),
            prompt=find_side_prompt(manifest, side),
            side=side,
            truncate=options.truncate_to is not None,
            on_progress=on_progress,
        )
        return list(rows), num_cut

    def compare(queries: Vectors, documents: Vectors, pairs: list[tuple[int, int]]) -> NDArray[np.float32]:
        return score_routes(queries, documents, pairs, manifest.similarity_fn_name)

    return EmbedScorer(
        embed=embed, compare=compare, cost=lambda _text: manifest.pooler.embedding_size, budget=_STEP_VALUES
    )


def score_routes(
    queries: Vectors, documents: Vectors, pairs: Sequence[tuple[int, int]], function: str
) -> NDArray[np.float32]:
    """Score pairs of embeddings.

    Args:
        queries: One (embedding_size,) a query.
        documents: One a document.
        pairs: Indices of both.
        function: A key of SIMILARITY_FUNCTIONS.

    Returns:
        (num_pairs,); a pair's bits do not depend on the other pairs.

    Raises:
        InputError: values too large for their products.
    """
    step = max(1, _STEP_VALUES // len(queries[0]))
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), step):
        part = pairs[start : start + step]
        left, right = (np.stack([queries[query] for query, _ in part]), np.stack([documents[row] for _, row in part]))
        scores[start : start + step] = similarity_pairs(left, right, function)
    return scores
