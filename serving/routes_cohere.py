"""``POST /v2/embed`` and ``/v1/embed``: Cohere's embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from poolgraph.errors import InputError
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.static_query import name_side
from poolgraph.runtime.work import Work
from poolgraph.serving.answers import Outputs, count_usage, count_values, list_use
from poolgraph.serving.chat import join_parts
from poolgraph.serving.encodings import LITTLE_FLOAT32, Floats, encode_bits, encode_floats
from poolgraph.serving.endpoint import TASK_ERRORS, Answer, Call, Endpoint, answer_json
from poolgraph.serving.request_fields import build_params, check_number, check_size, plan_tokenization, plan_urgency
from poolgraph.serving.routing import choose_runner, find_model
from poolgraph.serving.schema_cohere import (
    ApiVersion,
    BilledUnits,
    CohereEmbedRequest,
    CohereEmbedResponse,
    CohereFloatsResponse,
    CohereMeta,
    EmbeddingsByType,
)

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel
    from poolgraph.tasks import Side

_PROMPT_NAMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "search_query": ("search_query", "query"),
        "search_document": ("search_document", "document", "passage"),
        "classification": ("classification",),
        "clustering": ("clustering",),
    }
)
"""Cohere's input types, and the names that models have for them."""

_SEARCH_SIDES: Final[Mapping[str, Side]] = MappingProxyType(
    {
        "search_query": "query",
        "query": "query",
        "search_document": "document",
        "document": "document",
        "passage": "document",
    }
)
"""Input types that say which side a text is of, for models that answer the two differently."""

_ENCODERS: Final[Mapping[str, Callable[[Floats], Any]]] = MappingProxyType(
    {
        "float": encode_floats,
        "binary": lambda values: encode_bits(values, signed=True),
        "ubinary": lambda values: encode_bits(values, signed=False),
        "base64": LITTLE_FLOAT32.encode,
    }
)

_SIDES: Final = MappingProxyType({"END": "right", "START": "left", "NONE": None})


async def create_cohere_embeddings(call: Call, body: CohereEmbedRequest) -> Answer:
    """Embed texts."""
    return await _embed(call, body, "2")


async def create_old_embeddings(call: Call, body: CohereEmbedRequest) -> Answer:
    """Embed texts; without ``embedding_types`` the embeddings are a plain list."""
    return await _embed(call, body, "1")


async def _embed(call: Call, body: CohereEmbedRequest, version: str) -> Answer:
    model = find_model(call.context.registry, body.model, "embed", "Embeddings")
    for given in (body.texts, body.inputs):
        check_number(given, call.context.settings, "texts")
    texts = _read_texts(body, model)
    prompts: list[ParsedPrompt] = list(texts)
    num_chars = check_size(prompts, call.context.settings, "texts")
    has_sides = model.manifest.static_query is not None
    options = RequestOptions(
        pooling_params=build_params(None, body.output_dimension),
        use_tqdm=False,
        prefix=choose_prompt(body.input_type, model.manifest.prompts, has_sides=has_sides),
        side=name_side(model.manifest, None, _SEARCH_SIDES.get(body.input_type or "")),
        tokenization=plan_tokenization(_plan_limit(body, model), _SIDES[body.truncate], model),
    )
    runner = choose_runner(model, refuses_long=body.truncate == "NONE")
    outputs = await model.answer(
        lambda: _limit(runner.answer_prompts(prompts, "embed", options, count()), body),
        plan_urgency(body, call.context.settings),
        num_chars=num_chars,
    )
    return await call.encode(model, lambda: _build(call, body, texts, outputs, version), count_values(outputs))


def _read_texts(body: CohereEmbedRequest, model: ServedModel) -> list[str]:
    given = [value for value in (body.texts, body.images, body.inputs) if value]
    if len(given) != 1:
        raise InputError(
            "Exactly one of texts, images, or inputs must be provided, and it must be non-empty", parameter="texts"
        )
    if body.images:
        raise InputError(f"MultiModalParam is not supported for {model.manifest.architecture}", parameter="images")
    if body.inputs:
        return [join_parts(item.content, model.manifest.architecture) for item in body.inputs]
    return list(body.texts or ())


def choose_prompt(input_type: str | None, prompts: Mapping[str, str], *, has_sides: bool = False) -> str:
    """Return what is put before each text.

    Cohere's clients always send an input type; a model without prompts takes Cohere's own, which then mean nothing.

    Args:
        input_type: As the request has it.
        prompts: The model's prompts by name.
        has_sides: Whether the model answers queries and documents differently, with prompts or without.

    Raises:
        InputError: a type that the model has no prompt for.
    """
    if input_type is None:
        return ""
    names = _PROMPT_NAMES.get(input_type, (input_type,))
    for name in names:
        if name in prompts:
            return prompts[name]
    if (not prompts and input_type in _PROMPT_NAMES) or (has_sides and input_type in _SEARCH_SIDES):
        return ""
    supported = ", ".join(sorted(prompts or _PROMPT_NAMES))
    raise InputError(
        f"Unsupported input_type {input_type!r}. Supported values: {supported}",
        parameter="input_type",
        value=input_type,
    )


def _plan_limit(body: CohereEmbedRequest, model: ServedModel) -> int | None:
    """Return how many tokens of a longer text are kept; None where it is an error."""
    if body.truncate == "NONE":
        return None
    return -1 if body.max_tokens is None else min(body.max_tokens, model.manifest.limits.max_model_len)


def _limit(work: Work[Outputs], body: CohereEmbedRequest) -> Work[Outputs]:
    """Refuse, before anything is run, a text that has more tokens than the request wants."""
    run = next(work)
    if body.truncate == "NONE" and body.max_tokens is not None:
        for text in run.encoded:
            if text.num_tokens > body.max_tokens:
                raise InputError(
                    f"Input of {text.num_tokens} tokens exceeds max_tokens={body.max_tokens} with truncate=NONE. "
                    "Set truncate to END or START to allow truncation.",
                    parameter="max_tokens",
                    value=body.max_tokens,
                )
    answers = yield run
    try:
        work.send(answers)
    except StopIteration as end:
        outputs: Outputs = end.value
        return outputs
    raise AssertionError("a request of prompts runs once")


def _build(call: Call, body: CohereEmbedRequest, texts: list[str], outputs: Outputs, version: str) -> Answer:
    rows = [output.outputs.data for output in outputs]
    name = call.name("embd")
    meta = CohereMeta(
        api_version=ApiVersion(version=version),
        billed_units=BilledUnits(input_tokens=count_usage(outputs).prompt_tokens),
        token_use=list_use(outputs),
    )
    if version == "1" and not body.embedding_types:
        return answer_json(CohereFloatsResponse(id=name, embeddings=_encode("float", rows), texts=texts, meta=meta))
    kinds = dict.fromkeys(body.embedding_types or ("float",))
    forms = {kind: _encode(kind, rows) for kind in kinds}
    return answer_json(
        CohereEmbedResponse(
            id=name,
            embeddings=EmbeddingsByType(
                float_=forms.get("float"),
                binary=forms.get("binary"),
                ubinary=forms.get("ubinary"),
                base64=forms.get("base64"),
            ),
            texts=texts,
            meta=meta,
        )
    )


def _encode(kind: str, rows: list[Floats]) -> Any:
    return encode_floats(np.stack(rows)) if kind == "float" else [_ENCODERS[kind](row) for row in rows]


COHERE_EMBED: Final = Endpoint(
    method="POST",
    path="/v2/embed",
    function=create_cohere_embeddings,
    summary="Embed texts (Cohere)",
    body_type=CohereEmbedRequest,
    answer_type=CohereEmbedResponse,
    statuses=TASK_ERRORS,
    tag="Jina and Cohere",
)

OLD_COHERE_EMBED: Final = replace(
    COHERE_EMBED,
    path="/v1/embed",
    function=create_old_embeddings,
    summary="Embed texts (Cohere's first version)",
    answer_type=CohereFloatsResponse | CohereEmbedResponse,
)
