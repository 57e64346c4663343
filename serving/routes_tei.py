"""Routes of text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from poolgraph import __version__
from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.module_kinds import AUTO_ENCODER, read_head_kinds
from poolgraph.runtime.outputs import ScoringRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.score_pairs import plan_pairs
from poolgraph.runtime.score_request import ScoreRequest
from poolgraph.runtime.score_requests import answer_scores
from poolgraph.runtime.sparse_output import read_sparse
from poolgraph.runtime.static_query import name_side, resolve_route
from poolgraph.serving.answers import Outputs, answer_texts, count_values, use_headers
from poolgraph.serving.asgi_types import Header
from poolgraph.serving.encodings import check_finite, encode_floats, encode_sparse
from poolgraph.serving.endpoint import TASK_ERRORS, Answer, Call, Endpoint, Function, answer_json
from poolgraph.serving.request_fields import (
    TextRequest,
    build_params,
    check_number,
    check_size,
    plan_tokenization,
    read_prompts,
)
from poolgraph.serving.routes_scores import Pairs, answer_pairs
from poolgraph.serving.routing import can, choose_runner, find_model, show_name
from poolgraph.serving.schema_tei import (
    TRUNCATION_SIDES,
    TeiEmbedAllRequest,
    TeiEmbedRequest,
    TeiEmbedSparseRequest,
    TeiInfo,
    TeiPrediction,
    TeiPredictRequest,
    TeiSimilarityParameters,
    TeiSimilarityRequest,
    TeiSparseValue,
)
from poolgraph.serving.urgency import Urgency

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel

_Scores = tuple[list[list[float]], tuple[Header, ...]]
"""The scores of each row, and the headers that tell its tokens."""


async def embed(call: Call, body: TeiEmbedRequest) -> Answer:
    """Embed texts: rows of numbers, nothing beside them."""
    model = find_model(call.context.registry, body.model, "embed", "Embed")
    params = build_params(body.normalize, body.dimensions)
    outputs = await _answer(call, body, model, "embed", params)
    return await call.encode(
        model,
        lambda: Answer(
            body=bytes(encode_floats(np.stack([output.outputs.data for output in outputs]))),
            headers=use_headers(outputs),
        ),
        count_values(outputs),
    )


async def embed_all(call: Call, body: TeiEmbedAllRequest) -> Answer:
    """Embed each token of texts."""
    model = find_model(call.context.registry, body.model, "token_embed", "Token embed")
    outputs = await _answer(call, body, model, "token_embed", build_params(None))
    return await call.encode(
        model,
        lambda: answer_json([encode_floats(output.outputs.data) for output in outputs], headers=use_headers(outputs)),
        count_values(outputs),
    )


async def embed_sparse(call: Call, body: TeiEmbedSparseRequest) -> Answer:
    """Weigh the words of texts: for each the token ids that have a weight."""
    model = find_model(call.context.registry, body.model, "embed_sparse", "Embed sparse")
    if body.dimensions is not None:
        raise InputError(
            f"dimensions is for dense embeddings, got {body.dimensions}: of sparse ones the leading numbers are a "
            "vocabulary's first words; leave it out",
            parameter="dimensions",
            value=body.dimensions,
        )
    is_splade = model.manifest.pooler.token_weights is None
    params = build_params(body.normalize if is_splade else None)
    outputs = await _answer(call, body, model, "embed" if is_splade else "token_classify", params)
    found = (read_sparse(output, model.manifest) for output in outputs)
    divides = body.normalize and not is_splade  # what comes of no pooled vector has no norm yet
    return await call.encode(
        model,
        lambda: answer_json(
            [encode_sparse(one.to_unit() if divides else one) for one in found], headers=use_headers(outputs)
        ),
        count_values(outputs),
    )


async def _answer(call: Call, body: Any, model: ServedModel, task: str, params: PoolingParams) -> Outputs:
    settings = call.context.settings
    request = read_prompts(body.inputs, model, settings)
    prefix = find_prompt(body.prompt_name, model)
    given = getattr(body, "side", None)
    if given is not None:
        resolve_route(model.manifest, given)
    side = name_side(model.manifest, given, body.prompt_name) if task == "embed" else None
    if prefix and not all(isinstance(text, str) for text in request.prompts):
        raise InputError("prompt_name is for texts, not for token ids", parameter="prompt_name")
    return await answer_texts(
        model,
        request,
        task,
        _options(body, model, params, prefix, side),
        _urgency(call),
        refuses_long=body.truncate is False,
    )


def _options(
    body: Any, model: ServedModel, params: PoolingParams, prefix: str = "", side: str | None = None
) -> RequestOptions:
    return RequestOptions(
        pooling_params=params,
        use_tqdm=False,
        prefix=prefix,
        side=side,
        tokenization=plan_tokenization(
            -1 if body.truncate else None, TRUNCATION_SIDES[body.truncation_direction.lower()], model
        ),
    )


def _urgency(call: Call) -> Urgency:
    return Urgency(timeout=call.context.settings.request_timeout)


def find_prompt(name: str | None, model: ServedModel) -> str:
    """Return the prompt of that name.

    Raises:
        InputError: the model has none of that name.
    """
    # A side is named by its prompt, and every model of sentence-transformers has those two, empty if need be.
    if name is None or (name not in model.manifest.prompts and name_side(model.manifest, None, name) is not None):
        return ""
    if name not in model.manifest.prompts:
        raise InputError(
            f"no prompt {name!r}; this model has {sorted(model.manifest.prompts)}", parameter="prompt_name", value=name
        )
    return model.manifest.prompts[name]


async def predict(call: Call, body: TeiPredictRequest) -> Answer:
    """Classify texts, or pairs of texts: for each the classes, the likeliest first."""
    model = find_model(call.context.registry, body.model, "classify", "Predict")
    check_number(body.inputs, call.context.settings, "inputs")
    rows, is_batch = _read_rows(body.inputs)
    params = PoolingParams(use_activation=False) if body.raw_scores else build_params(None)
    options = _options(body, model, params)
    pairs = [row for row in rows if len(row) == 2]
    if pairs and len(pairs) < len(rows):
        raise InputError("texts and pairs of texts cannot be mixed in one request", parameter="inputs")
    strict = body.truncate is False
    predict_rows = _predict_pairs if pairs else _predict_texts
    scores, headers = await predict_rows(call, model, rows, options, refuses_long=strict)
    answers = [_rank(row, model.manifest.labels) for row in scores]
    return answer_json(answers if is_batch else answers[0], headers=headers)


async def _predict_texts(
    call: Call, model: ServedModel, rows: Sequence[Sequence[str]], options: RequestOptions, *, refuses_long: bool
) -> _Scores:
    texts: list[ParsedPrompt] = [row[0] for row in rows]
    request = TextRequest(prompts=texts, num_chars=check_size(texts, call.context.settings, "inputs"))
    outputs = await answer_texts(model, request, "classify", options, _urgency(call), refuses_long=refuses_long)
    return [_shorten(output.outputs.data) for output in outputs], use_headers(outputs)


async def _predict_pairs(
    call: Call, model: ServedModel, rows: Sequence[Sequence[str]], options: RequestOptions, *, refuses_long: bool
) -> _Scores:
    sides: list[list[ParsedPrompt]] = [[row[side] for row in rows] for side in range(2)]
    num_chars = sum(check_size(side, call.context.settings, "inputs") for side in sides)
    pairs = Pairs(queries=sides[0], documents=sides[1], num_chars=num_chars)
    outputs = await answer_pairs(model, pairs, options, _urgency(call), refuses_long=refuses_long)
    return [[output.outputs.score] for output in outputs], use_headers(outputs)


def _read_rows(inputs: str | list[str | list[str]]) -> tuple[list[list[str]], bool]:
    """Return texts and pairs as rows of one or two, and whether they are a list of inputs."""
    if isinstance(inputs, str):
        return [[inputs]], False
    if inputs and all(isinstance(one, str) for one in inputs) and len(inputs) <= 2:
        return [[str(one) for one in inputs]], False
    rows = [one for one in inputs if isinstance(one, list) and 1 <= len(one) <= 2]
    if not rows or len(rows) < len(inputs):
        raise InputError("inputs must be a text, a pair [a, b], or a list of [a] and [a, b]", parameter="inputs")
    return rows, True


def _shorten(values: Any) -> list[float]:
    """Return float32 numbers as the shortest ones that read the same."""
    return [float(str(value)) for value in values]


def _rank(scores: Sequence[float], labels: Sequence[str]) -> list[TeiPrediction]:
    check_finite(scores)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    names = labels or [str(index) for index in range(len(scores))]
    return [TeiPrediction(score=scores[index], label=names[index]) for index in order]


async def similarity(call: Call, body: TeiSimilarityRequest) -> Answer:
    """Compare a sentence with others by the cosine of their embeddings."""
    model = find_model(call.context.registry, body.model, "embed", "Similarity")
    asked = body.parameters or TeiSimilarityParameters()
    queries: list[ParsedPrompt] = [body.inputs.source_sentence]
    documents: list[ParsedPrompt] = list(body.inputs.sentences)
    side = name_side(model.manifest, None, asked.prompt_name)
    options = _options(asked, model, PoolingParams(), find_prompt(asked.prompt_name, model), side)
    request = ScoreRequest(
        queries=queries,
        documents=documents,
        pairs=plan_pairs(1, len(documents)),
        params=PoolingParams(),
        kind="bi_encoder",
        scoring=ScoreOptions(),
        options=options,
    )
    num_chars = sum(check_size(side, call.context.settings, "inputs") for side in (queries, documents))
    runner = choose_runner(model, refuses_long=asked.truncate is False)
    outputs: list[ScoringRequestOutput] = await model.answer(
        lambda: answer_scores(runner, request, count()), _urgency(call), num_chars=num_chars
    )
    scores = [output.outputs.score for output in outputs]
    check_finite(scores)
    return answer_json(scores, headers=use_headers(outputs))


async def show_info(call: Call, body: None) -> Answer:
    """Describe the model that is served first."""
    model = call.context.registry.models[0]
    settings = call.context.settings
    manifest = model.manifest
    return answer_json(
        TeiInfo(
            model_id=show_name(model),
            model_sha=manifest.source.revision,
            model_dtype=model.runner.model.variant.precision,
            model_type=_describe_type(model),
            max_concurrent_requests=settings.max_connections,
            max_input_length=manifest.limits.max_model_len,
            max_batch_tokens=settings.engine.max_batch_tokens,
            max_batch_requests=None,
            max_client_batch_size=settings.max_texts,
            auto_truncate=settings.engine.long_text == "truncate",
            tokenization_workers=settings.engine.num_tokenizer_threads,
            version=__version__,
        )
    )


def _describe_type(model: ServedModel) -> dict[str, Any]:
    manifest = model.manifest
    if "classify" not in manifest.tasks:
        is_splade = manifest.pooler.sparse and AUTO_ENCODER not in read_head_kinds(model.runner.model.path)
        pooling = "splade" if is_splade else "+".join(manifest.pooler.pooling)
        return {"embedding": {"pooling": pooling}}
    labels = {str(index): label for index, label in enumerate(manifest.labels)}
    names = {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
    return {"reranker" if manifest.scoring is not None else "classifier": names}


def _post(path: str, function: Any, summary: str, body_type: Any, answer_type: Any) -> Endpoint:
    return Endpoint(
        method="POST",
        path=path,
        function=function,
        summary=f"{summary} (text-embeddings-inference)",
        body_type=body_type,
        answer_type=answer_type,
        statuses=TASK_ERRORS,
        tag="text-embeddings-inference",
    )


EMBED: Final = _post("/embed", embed, "Embed texts", TeiEmbedRequest, list[list[float]])
EMBED_ALL: Final = _post("/embed_all", embed_all, "Embed each token", TeiEmbedAllRequest, list[list[list[float]]])
EMBED_SPARSE: Final = _post(
    "/embed_sparse", embed_sparse, "Weigh the words of texts", TeiEmbedSparseRequest, list[list[TeiSparseValue]]
)
PREDICT: Final = _post(
    "/predict", predict, "Classify texts or pairs", TeiPredictRequest, list[TeiPrediction | list[TeiPrediction]]
)
SIMILARITY: Final = _post("/similarity", similarity, "Compare sentences", TeiSimilarityRequest, list[float])
_ROOTS: Final = (("classify", PREDICT), ("embed", EMBED))
"""By a model's tasks, what ``POST /`` is."""


def find_root(model: ServedModel) -> tuple[Endpoint, ...]:
    """Return ``POST /``, to which clients turn that know no more than a server's address; none for other tasks.

    Args:
        model: The one that is served first, which answers unless a request names another.
    """
    found = [endpoint for task, endpoint in _ROOTS if can(model, task)][:1]
    return tuple(
        replace(one, path="/", function=_ask_first(one), summary=f"{one.summary}, at the root") for one in found
    )


def _ask_first(endpoint: Endpoint) -> Function:
    @wraps(endpoint.function)
    async def ask(call: Call, body: Any) -> Answer:
        body.model = body.model or show_name(call.context.registry.models[0])
        return await endpoint.function(call, body)

    return ask


INFO: Final = Endpoint(
    method="GET",
    path="/info",
    function=show_info,
    summary="The model that is served first (text-embeddings-inference)",
    answer_type=TeiInfo,
    tag="text-embeddings-inference",
)
