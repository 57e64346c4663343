"""``/score`` and ``/rerank`` with their versions: the requests and answers of vLLM, Jina and Cohere."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from poolgraph.serving.schema_cohere import ApiVersion
from poolgraph.serving.schema_common import CommonFields, ContentPart, Count, TokenUse, Usage
from poolgraph.serving.schema_tei import Direction


class ScoreContent(msgspec.Struct, kw_only=True):
    """A text in parts, or, as Cohere and Jina write it, under its name."""

    content: list[ContentPart] | None = None
    text: str | None = None


ScoreItem = str | ScoreContent
ScoreInput = str | ScoreContent | list[str | int | ScoreContent | list[int]]
"""A text, or several; models that embed take token ids too."""


class ScoringFields(CommonFields, kw_only=True):
    """How pairs are scored.

    Attributes:
        use_activation: False gives a cross-encoder's logit.
        max_tokens_per_query: Tokens kept of a query; 0 keeps all.
        max_tokens_per_doc: Tokens kept of a document; 0 keeps all.
        instruction: What is asked of a model with a score template.
        chat_template_kwargs: Further variables of the score template.
        chat_template: Refused unless the server runs with --trust-request-chat-template.
    """

    use_activation: bool | None = None
    max_tokens_per_query: Count = 0
    max_tokens_per_doc: Count = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: str | None = None


class ScoreBody(ScoringFields, kw_only=True):
    """Pairs 1:1, 1:N or N:N, under one of vLLM's four pairs of names."""

    queries: ScoreInput | None = None
    documents: ScoreInput | None = None
    items: ScoreInput | None = None
    data_1: ScoreInput | None = None
    data_2: ScoreInput | None = None
    text_1: ScoreInput | None = None
    text_2: ScoreInput | None = None


class ScoreAnswerItem(TokenUse, kw_only=True):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(msgspec.Struct, kw_only=True):
    """Scores in the order of the documents."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreAnswerItem]
    usage: Usage


class RerankRequest(ScoringFields, kw_only=True):
    """Documents to put into the order of their scores against one query.

    Attributes:
        query: The query.
        documents: The documents; required but in the body of text-embeddings-inference, which has ``texts``.
        top_n: How many are returned; 0 returns all.
        return_documents: False leaves their texts out of the answer.
        texts: The documents of a request of text-embeddings-inference, which the next four belong to: its answer is the
            bare list of places and scores.
        raw_scores: Whether scores are logits.
        return_text: Whether the answer has the texts.
        truncate: Whether longer pairs are cut to the model's limit.
        truncation_direction: Where they are cut.
    """

    query: ScoreItem
    documents: ScoreInput | None = None
    top_n: Count = 0
    return_documents: bool | None = None
    texts: list[str] | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None
    truncation_direction: Direction = "Right"


class RankedText(msgspec.Struct, kw_only=True):
    """A document."""

    text: str
    multi_modal: None = None


class RerankItem(TokenUse, kw_only=True):
    """A document with its place in the request and its score."""

    index: int
    document: RankedText | msgspec.UnsetType = msgspec.UNSET
    relevance_score: float


class RerankUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class SearchUnits(msgspec.Struct, kw_only=True):
    """Queries with up to 100 documents."""

    search_units: int


class RerankMeta(msgspec.Struct, kw_only=True):
    """What clients of Cohere's ``/v2/rerank`` read."""

    api_version: ApiVersion
    billed_units: SearchUnits


class RankedPlace(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A document's place in a request of text-embeddings-inference, its score, and its text if that was asked for."""

    index: int
    score: float
    text: str | None = None


class RerankResponse(msgspec.Struct, kw_only=True):
    """Documents, the best first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankItem]
    meta: RerankMeta | msgspec.UnsetType = msgspec.UNSET
