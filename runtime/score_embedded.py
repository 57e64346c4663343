"""Scores by comparing embeddings: each distinct text embedded once, step by step, few embeddings there at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.score_pairs import EmbedStep, plan_steps
from poolgraph.tasks import Side

Vectors: TypeAlias = list[NDArray[np.float32]]
"""An embedding (size,) or a matrix of token vectors (num_vectors, size) for each text."""

Embed: TypeAlias = Callable[[Side, list[str]], tuple[Vectors, int]]
"""The side and texts to their vectors, and the number of texts that were cut."""

Compare: TypeAlias = Callable[[Vectors, Vectors, list[tuple[int, int]]], NDArray[np.float32]]
"""Vectors of queries and documents, and pairs of their indices, to (num_pairs,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedScorer:
    """Scores pairs of texts with one model.

    Attributes:
        embed: Embeds texts of one side.
        compare: Compares embeddings.
        cost: Cost of holding a text's vectors.
        budget: Cost of the vectors of the streamed side that are there at a time.
    """

    embed: Embed
    compare: Compare
    cost: Callable[[str], int]
    budget: int

    def score(
        self, queries: Sequence[str], documents: Sequence[str], pairs: Sequence[tuple[int, int]]
    ) -> tuple[NDArray[np.float32], int]:
        """Score pairs.

        Args:
            queries: The queries.
            documents: The documents.
            pairs: Indices of a query and a document.

        Returns:
            (num_pairs,), and how many distinct texts were cut.
        """
        sides: tuple[Side, Side] = ("query", "document")
        given, distinct = (queries, documents), [(query, document) for query, document in pairs]
        if len({*queries}) > len({*documents}):
            sides = ("document", "query")
            given, distinct = (documents, queries), [(document, query) for query, document in pairs]
        held_places, streamed_places = (_number_texts(texts) for texts in given)
        distinct = [(held_places[given[0][left]], streamed_places[given[1][right]]) for left, right in distinct]
        held_texts, streamed_texts = list(held_places), list(streamed_places)
        scores = np.empty(len(pairs), dtype=np.float32)
        held: dict[int, NDArray[np.float32]] = {}
        num_cut = 0
        for step in plan_steps(distinct, [self.cost(text) for text in streamed_texts], self.budget):
            new, new_cut = self._embed(sides[0], [held_texts[index] for index in step.held])
            held.update(zip(step.held, new, strict=True))
            streamed, streamed_cut = self._embed(sides[1], streamed_texts[step.streamed.start : step.streamed.stop])
            num_cut += new_cut + streamed_cut
            scores[list(step.pairs)] = self._compare(sides, step, held, streamed, distinct)
            for index in step.released:
                del held[index]
        return scores, num_cut

    def _embed(self, side: Side, texts: list[str]) -> tuple[Vectors, int]:
        return self.embed(side, texts) if texts else ([], 0)

    def _compare(
        self,
        sides: tuple[Side, Side],
        step: EmbedStep,
        held: dict[int, NDArray[np.float32]],
        streamed: Vectors,
        distinct: Sequence[tuple[int, int]],
    ) -> NDArray[np.float32]:
        used = list(dict.fromkeys(distinct[index][0] for index in step.pairs))
        place = {index: row for row, index in enumerate(used)}
        pairs = [(place[distinct[index][0]], distinct[index][1] - step.streamed.start) for index in step.pairs]
        left = [held[index] for index in used]
        if sides[0] == "query":
            return self.compare(left, streamed, pairs)
        return self.compare(streamed, left, [(streamed_row, held_row) for held_row, streamed_row in pairs])


def _number_texts(texts: Sequence[str]) -> dict[str, int]:
    """Return the distinct texts with their numbers, in the order of their first appearance."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}
