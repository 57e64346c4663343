"""The application: the routes that the models are able to answer, and their documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import msgspec

from poolgraph.serving.asgi_types import ASGIApp
from poolgraph.serving.dispatcher import Dispatcher
from poolgraph.serving.docs_page import build_page
from poolgraph.serving.endpoint import JSON, Answer, Call, Context, Endpoint
from poolgraph.serving.openapi import build_document
from poolgraph.serving.routes_cohere import COHERE_EMBED, OLD_COHERE_EMBED
from poolgraph.serving.routes_embeddings import CLASSIFY, EMBEDDINGS, POOLING
from poolgraph.serving.routes_rerank import RERANK_ROUTES
from poolgraph.serving.routes_scores import SCORE_ROUTES
from poolgraph.serving.routes_server import SERVER_ROUTES
from poolgraph.serving.routes_tei import EMBED, EMBED_ALL, EMBED_SPARSE, INFO, PREDICT, SIMILARITY, find_root
from poolgraph.serving.routes_tokens import DETOKENIZE, TOKENIZE
from poolgraph.serving.routing import can, can_score

if TYPE_CHECKING:
    from poolgraph.serving.observer import Observer
    from poolgraph.serving.registry import ModelRegistry
    from poolgraph.serving.settings import ServeSettings

_BY_TASK: Final[dict[str, tuple[Endpoint, ...]]] = {
    "embed": (EMBEDDINGS, COHERE_EMBED, OLD_COHERE_EMBED, EMBED, SIMILARITY),
    "token_embed": (EMBEDDINGS, EMBED_ALL),
    "embed_sparse": (EMBED_SPARSE,),
    "classify": (CLASSIFY, PREDICT),
    "token_classify": (),
}
"""The routes that a model's task brings."""

_ALWAYS: Final = (POOLING, TOKENIZE, DETOKENIZE, INFO, *SERVER_ROUTES)


def build_app(registry: ModelRegistry, settings: ServeSettings, observer: Observer) -> ASGIApp:
    """Return the application that answers for the models.

    Args:
        registry: The models.
        settings: Limits of requests, and whether the documents are served.
        observer: Told how long answers take to encode.
    """
    endpoints = choose_endpoints(registry)
    documents = build_documents(endpoints) if settings.allow_docs else ()
    return Dispatcher((*endpoints, *documents), Context(registry=registry, settings=settings, observer=observer))


def choose_endpoints(registry: ModelRegistry) -> tuple[Endpoint, ...]:
    """Return the routes that at least one model is able to answer."""
    found = dict.fromkeys(
        endpoint
        for task, endpoints in _BY_TASK.items()
        if any(can(model, task) for model in registry.models)
        for endpoint in endpoints
    )
    scores = (*SCORE_ROUTES, *RERANK_ROUTES) if any(can_score(model) for model in registry.models) else ()
    return (*found, *scores, *find_root(registry.models[0]), *_ALWAYS)


@dataclass(frozen=True)
class _Documents:
    """Made when first asked for."""

    endpoints: Sequence[Endpoint]

    @cached_property
    def as_json(self) -> bytes:
        return msgspec.json.encode(build_document(self.endpoints))

    @cached_property
    def as_page(self) -> bytes:
        return build_page(build_document(self.endpoints)).encode()


def build_documents(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Return the routes of the OpenAPI document and of the page made of it."""
    documents = _Documents(endpoints)

    async def show_document(call: Call, body: None) -> Answer:
        """Return the OpenAPI document."""
        return Answer(body=documents.as_json, content_type=JSON)

    async def show_page(call: Call, body: None) -> Answer:
        """Return the documentation as a page."""
        return Answer(body=documents.as_page, content_type=b"text/html; charset=utf-8")

    return (
        Endpoint(method="GET", path="/openapi.json", function=show_document, summary="The document", tag="Server"),
        Endpoint(method="GET", path="/docs", function=show_page, summary="This page", tag="Server"),
    )
