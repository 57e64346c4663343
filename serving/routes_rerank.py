"""``/rerank`` with its versions: documents in the order of their scores, as Jina, Cohere, vLLM and TEI answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.outputs import ScoringRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestOptions
from poolgraph.serving.answers import count_usage, describe_use, use_headers
from poolgraph.serving.encodings import check_finite
from poolgraph.serving.endpoint import Answer, Call, Endpoint, answer_json
from poolgraph.serving.request_fields import plan_tokenization
from poolgraph.serving.routes_scores import SCORE, Pairs, answer_pairs, read_pairs, score_pairs
from poolgraph.serving.routing import find_model, show_name
from poolgraph.serving.schema_cohere import ApiVersion
from poolgraph.serving.schema_scores import (
    RankedPlace,
    RankedText,
    RerankItem,
    RerankMeta,
    RerankRequest,
    RerankResponse,
    RerankUsage,
    SearchUnits,
)
from poolgraph.serving.schema_tei import TRUNCATION_SIDES
from poolgraph.serving.urgency import Urgency

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel

_UNIT_DOCUMENTS: Final = 100
"""Documents that Cohere counts as one search: https://docs.cohere.com/reference/rerank, ``billed_units``."""


async def create_ranking(call: Call, body: RerankRequest, *, version: str | None = None) -> Answer:
    """Put documents into the order of their scores; equal ones stay in their order.

    Args:
        call: The call.
        body: The request; with ``texts`` it is one of text-embeddings-inference.
        version: Of Cohere's API, whose clients want to be told; None for others.
    """
    model = find_model(call.context.registry, body.model, "score", "Rerank")
    if body.texts is not None:
        return await _rank_texts(call, body, body.texts, model)
    if body.documents is None:
        raise InputError("Object missing required field `documents`", parameter="documents")
    pairs = read_pairs(body.query, body.documents, model, call)
    outputs = await score_pairs(call, _cap(body, model), model, pairs)
    order = _rank(outputs)[: body.top_n or None]
    return await call.encode(
        model, lambda: _build(call, body, model, pairs, outputs, order, version), len(pairs.documents)
    )


def _cap(body: RerankRequest, model: ServedModel) -> RerankRequest:
    """Return the request without caps that cap nothing: Cohere's clients send its own model's, 4,096 tokens."""
    limit = model.manifest.limits.max_model_len
    query, document = (0 if most >= limit else most for most in (body.max_tokens_per_query, body.max_tokens_per_doc))
    return msgspec.structs.replace(body, max_tokens_per_query=query, max_tokens_per_doc=document)


def _rank(outputs: Sequence[ScoringRequestOutput]) -> list[int]:
    scores = [output.outputs.score for output in outputs]
    check_finite(scores)
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def _build(
    call: Call,
    body: RerankRequest,
    model: ServedModel,
    pairs: Pairs,
    outputs: Sequence[ScoringRequestOutput],
    order: Sequence[int],
    version: str | None,
) -> Answer:
    def show(index: int) -> RankedText | msgspec.UnsetType:
        if body.return_documents is False:
            return msgspec.UNSET
        return RankedText(text=_show(pairs.documents[index], model))

    total = count_usage(outputs).total_tokens
    items = [
        RerankItem(
            index=index,
            document=show(index),
            relevance_score=outputs[index].outputs.score,
            **describe_use(outputs[index]),
        )
        for index in order
    ]
    return answer_json(
        RerankResponse(
            id=call.name("score", body.request_id),
            model=body.model or show_name(model),
            usage=RerankUsage(prompt_tokens=total, total_tokens=total),
            results=items,
            meta=msgspec.UNSET if version is None else _describe_units(version, len(pairs.documents)),
        )
    )


def _describe_units(version: str, num_documents: int) -> RerankMeta:
    units = -(-num_documents // _UNIT_DOCUMENTS)
    return RerankMeta(api_version=ApiVersion(version=version), billed_units=SearchUnits(search_units=units))


def _show(prompt: ParsedPrompt, model: ServedModel) -> str:
    return prompt if isinstance(prompt, str) else model.runner.tokenizer.decode(prompt)


async def _rank_texts(call: Call, body: RerankRequest, texts: list[str], model: ServedModel) -> Answer:
    if body.documents is not None:
        raise InputError("give documents or texts, not both", parameter="texts")
    pairs = read_pairs(body.query, list(texts), model, call)
    side = TRUNCATION_SIDES[body.truncation_direction.lower()]
    options = RequestOptions(
        pooling_params=PoolingParams(use_activation=False if body.raw_scores else None),
        use_tqdm=False,
        tokenization=plan_tokenization(-1 if body.truncate else None, side, model),
    )
    urgency = Urgency(timeout=call.context.settings.request_timeout)
    outputs = await answer_pairs(model, pairs, options, urgency, refuses_long=body.truncate is False)
    places = [
        RankedPlace(index=index, score=outputs[index].outputs.score, text=texts[index] if body.return_text else None)
        for index in _rank(outputs)
    ]
    return answer_json(places, headers=use_headers(outputs))


RERANK: Final = replace(
    SCORE,
    path="/rerank",
    function=create_ranking,
    summary="Put documents into the order of their scores (Jina, Cohere, text-embeddings-inference)",
    body_type=RerankRequest,
    answer_type=RerankResponse | list[RankedPlace],
    tag="Jina and Cohere",
)

RERANK_ROUTES: Final[tuple[Endpoint, ...]] = (
    RERANK,
    replace(RERANK, path="/v1/rerank"),
    replace(RERANK, path="/v2/rerank", function=partial(create_ranking, version="2")),
)
