"""What the server says about itself: models, version, health, readiness, metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from poolgraph import __version__
from poolgraph.serving.endpoint import Answer, Call, Endpoint, answer_json
from poolgraph.serving.engine_errors import ModelNotFound
from poolgraph.serving.health import check_ready, is_healthy
from poolgraph.serving.metrics import CONTENT_TYPE, metrics_text
from poolgraph.serving.routing import list_names, show_name
from poolgraph.serving.schema_models import ModelCard, ModelList, ReadyResponse, VersionResponse


async def list_models(call: Call, body: None) -> Answer:
    """List the models, each under all of its names."""
    return answer_json(ModelList(data=_list_cards(call)))


async def show_model(call: Call, body: None) -> Answer:
    """Return what the list of models says of one name, which may have slashes."""
    cards = {card.id: card for card in _list_cards(call)}
    if call.rest not in cards:
        raise ModelNotFound(call.rest, tuple(cards))
    return answer_json(cards[call.rest])


def _list_cards(call: Call) -> list[ModelCard]:
    return [
        ModelCard(
            id=name, created=model.created, root=show_name(model), max_model_len=model.manifest.limits.max_model_len
        )
        for model in call.context.registry.models
        for name in list_names(model)
    ]


async def show_version(call: Call, body: None) -> Answer:
    """Return the version."""
    return answer_json(VersionResponse(version=__version__))


async def show_health(call: Call, body: None) -> Answer:
    """Return 200 with no body while every engine is alive, else 503."""
    return Answer(body=b"", status=200 if await is_healthy(call.context.registry) else 503)


async def show_ready(call: Call, body: None) -> Answer:
    """Return 200 when every model is warm and still gives its probe's vector; the error says what is not."""
    await check_ready(call.context.registry)
    return answer_json(ReadyResponse())


async def show_metrics(call: Call, body: None) -> Answer:
    """Return the metrics in Prometheus' format."""
    return Answer(body=metrics_text(call.context.observer), content_type=CONTENT_TYPE.encode("ascii"))


_HEALTH: Final = Endpoint(
    method="GET",
    path="/health",
    function=show_health,
    summary="Whether the server is alive",
    statuses=(503,),
    tag="Server",
)
_ROOT: Final = replace(_HEALTH, path="/", summary="Whether the server is alive (text-embeddings-inference)")
_PING: Final = replace(_HEALTH, path="/ping", summary="Whether the server is alive (SageMaker, vLLM)")

SERVER_ROUTES: Final = (
    Endpoint(
        method="GET",
        path="/v1/models",
        function=list_models,
        summary="The models that are served (OpenAI)",
        answer_type=ModelList,
        tag="OpenAI",
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{id}",
        function=show_model,
        summary="One model (OpenAI)",
        answer_type=ModelCard,
        statuses=(404,),
        tag="OpenAI",
    ),
    Endpoint(
        method="GET",
        path="/version",
        function=show_version,
        summary="The version",
        answer_type=VersionResponse,
        tag="Server",
    ),
    _HEALTH,
    _ROOT,
    _PING,
    replace(_PING, method="POST"),
    Endpoint(
        method="GET",
        path="/ready",
        function=show_ready,
        summary="Whether every model answers as it should",
        answer_type=ReadyResponse,
        statuses=(500, 503, 504),
        tag="Server",
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        function=show_metrics,
        summary="Metrics in Prometheus' format",
        content_types=("text/plain",),
        tag="Server",
    ),
)
