"""Queries that a table answers, compared with the stored answers of the reference: exactly, nothing is rounded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import CheckRow, Manifest
from poolgraph.graphs.probe_files import ANSWERS_FILE, SparseRow
from poolgraph.runtime.static_query import encode_queries, load_static_weights, weigh_rows
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenizer import TextTokenizer


def check_queries(
    directory: Path, manifest: Manifest, texts: Sequence[str], expected: Sequence[SparseRow] | None
) -> list[CheckRow]:
    """Compare the weights of queries; the cosine column holds the share of equal answers.

    Args:
        directory: The artifact.
        manifest: Its manifest.
        texts: The probe texts, cut to the limit of queries.
        expected: For each the reference's weights that are not 0.

    Returns:
        One row; none for models that answer queries by a graph.

    Raises:
        ArtifactError: the table cannot be read, or the artifact has no stored answers for it.
    """
    weights = load_static_weights(directory, manifest)
    if weights is None:
        return []
    if expected is None or len(expected) != len(texts):
        found = "none" if expected is None else str(len(expected))
        raise ArtifactError(
            f"{ANSWERS_FILE} must have an answer to each of {len(texts)} queries, and has {found}: export the "
            "checkpoint again, or compare with it (--checkpoint)"
        )
    queries = encode_queries(TextTokenizer(directory, manifest), manifest, texts, truncate_to=TO_MODEL_LIMIT)
    num_equal, difference = 0, 0.0
    for query, (indices, values) in zip(queries, expected, strict=True):
        (answer,) = weigh_rows([query], weights)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(answer):
            raise ArtifactError(
                f"{ANSWERS_FILE} has answers to queries of words outside the {len(answer)} of the table"
            )
        reference = np.zeros_like(answer)
        reference[indices] = values
        num_equal += np.array_equal(answer, reference)
        difference = max(difference, float(np.abs(answer - reference).max()))
    return [
        CheckRow(
            variant="queries",
            family="weights",
            check="equal weights",
            num_texts=len(texts),
            min_cosine=num_equal / len(texts),
            max_difference=difference,
            required_cosine=1.0,
            allowed_difference=0.0,
            passed=num_equal == len(texts),
        )
    ]
