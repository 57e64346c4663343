"""What a late-interaction checkpoint says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from poolgraph.export.head import HeadStep
from poolgraph.export.late_interaction_files import Expansion
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.tasks import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class LateInteractionPlan:
    """How a late-interaction checkpoint encodes and scores.

    Attributes:
        sentence_transformer: The sentence-transformers files without head and pooling; prompts hold the markers.
        head: Steps of every token's row.
        query_length: Longest query in tokens.
        document_length: Longest document in tokens.
        expansion: How queries are filled up.
        skip_words: Tokens whose vectors take no part in the score.
        skip_in: Sides that they are skipped in.
        markers: Prefixes that must become one token each, where the tokenizer knows them.
    """

    sentence_transformer: SentenceTransformer
    head: tuple[HeadStep, ...]
    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    skip_words: tuple[str, ...] = ()
    skip_in: tuple[Side, ...] = ("document",)
    markers: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Longest text in tokens that the files ask for, 0 where they ask for none."""
        expanded = self.expansion.length if self.expansion is not None else 0
        return max(self.query_length or 0, self.document_length or 0, expanded)
