"""``/score`` and ``/rerank`` with their versions: the requests and answers of vLLM, Jina and Cohere."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from poolgraph.serving.schema_common import CommonFields, ContentPart, Count, TokenUse, Usage


class ScoreContent(msgspec.Struct, kw_only=True):
    """A text in parts."""

    content: list[ContentPart]


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
    """Documents to put into the order of their scores against one query; ``top_n`` 0 returns all."""

    query: ScoreItem
    documents: ScoreInput
    top_n: Count = 0


class RankedText(msgspec.Struct, kw_only=True):
    """A document."""

    text: str
    multi_modal: None = None


class RerankItem(TokenUse, kw_only=True):
    """A document with its place in the request and its score."""

    index: int
    document: RankedText
    relevance_score: float


class RerankUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(msgspec.Struct, kw_only=True):
    """Documents, the best first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankItem]
