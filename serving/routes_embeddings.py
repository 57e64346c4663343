"""``POST /v1/embeddings``, ``/pooling`` and ``/classify``: texts to vectors, in vLLM's words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from poolgraph.errors import InputError
from poolgraph.serving.answers import (
    Outputs,
    answer_bytes,
    answer_texts,
    count_usage,
    count_values,
    describe_use,
    now,
    use_headers,
)
from poolgraph.serving.encodings import WireFormat, build_wire, encode_floats
from poolgraph.serving.endpoint import TASK_ERRORS, TEXT_ERRORS, Answer, Call, Endpoint, answer_json
from poolgraph.serving.request_fields import build_params, plan_options, plan_urgency, read_texts, refuse_normalize
from poolgraph.serving.routing import find_model, show_name
from poolgraph.serving.schema_common import EncodingFields
from poolgraph.serving.schema_embeddings import (
    ChunkRange,
    EmbeddingItem,
    EmbeddingsRequest,
    EmbeddingsResponse,
    LateChunkingAnswer,
)
from poolgraph.serving.schema_pooling import (
    ClassifyItem,
    ClassifyRequest,
    ClassifyResponse,
    PoolingItem,
    PoolingRequest,
    PoolingResponse,
)

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel

_BYTES: Final = ("application/octet-stream",)


async def create_embeddings(call: Call, body: EmbeddingsRequest) -> Answer:
    """Embed texts; of models that embed each token, a matrix a text."""
    model = find_model(call.context.registry, body.model, "embeddings", "Embeddings")
    refuse_normalize(body.normalize)
    wire = read_wire(body)
    task = model.runner.embed_task
    if task == "token_embed":
        _check_token_embed(body)
    chunking = body.late_chunking_params
    params = build_params(body.use_activation, body.dimensions, None if chunking is None else chunking.chunk_size)
    request = read_texts(body.input, body.messages, body, model, call.context.settings)
    options = plan_options(body, request, model, params, special=body.add_special_tokens)
    outputs = await answer_texts(model, request, task, options, plan_urgency(body, call.context.settings))
    name = call.name("embd", body.request_id)

    def build() -> Answer:
        if wire.is_binary:
            return build_bytes(name, body.model or show_name(model), outputs, wire)
        items = [_build_item(index, output, wire) for index, output in enumerate(outputs)]
        return answer_json(
            EmbeddingsResponse(
                id=name, created=now(), model=body.model or show_name(model), data=items, usage=count_usage(outputs)
            )
        )

    return await call.encode(model, build, count_values(outputs))


def _check_token_embed(body: EmbeddingsRequest) -> None:
    if body.encoding_format != "float":
        raise InputError(
            f"encoding_format {body.encoding_format} is for one vector a text; this model embeds each token, "
            "so it is `float` here",
            parameter="encoding_format",
            value=body.encoding_format,
        )
    if body.dimensions is not None:
        raise InputError(
            "dimensions must be null for a model that embeds each token", parameter="dimensions", value=body.dimensions
        )


def _build_item(index: int, output: Any, wire: WireFormat) -> EmbeddingItem:
    data = output.outputs.data
    item = EmbeddingItem(index=index, embedding=wire.encode(data), **describe_use(output))
    if data.ndim > 1:
        item.late_chunking = _describe_chunks(output.late_chunking)
    return item


def _describe_chunks(chunking: Any) -> LateChunkingAnswer | None:
    if chunking is None:
        return None
    ranges = [
        ChunkRange(token_range=tuple(chunk.token_range), char_range=chunk.char_range and tuple(chunk.char_range))
        for chunk in chunking.chunks
    ]
    return LateChunkingAnswer(chunk_size=chunking.chunk_size, input_tokens=chunking.input_tokens, chunks=ranges)


async def create_pooling(call: Call, body: PoolingRequest) -> Answer:
    """Pool texts by any task of the model."""
    model = find_model(call.context.registry, body.model, None, "Pooling")
    refuse_normalize(body.normalize)
    task = _choose_task(body, model)
    wire = read_wire(body)
    request = read_texts(body.input, body.messages, body, model, call.context.settings)
    options = plan_options(body, request, model, build_params(body.use_activation), special=body.add_special_tokens)
    outputs = await answer_texts(model, request, task, options, plan_urgency(body, call.context.settings))
    name = call.name("pooling", body.request_id)

    def build() -> Answer:
        if wire.is_binary:
            return build_bytes(name, body.model or show_name(model), outputs, wire)
        items = [
            PoolingItem(index=index, data=wire.encode(output.outputs.data), **describe_use(output))
            for index, output in enumerate(outputs)
        ]
        return answer_json(
            PoolingResponse(
                id=name, created=now(), model=body.model or show_name(model), data=items, usage=count_usage(outputs)
            )
        )

    return await call.encode(model, build, count_values(outputs))


def _choose_task(body: PoolingRequest, model: ServedModel) -> str:
    if body.dimensions is not None:
        raise InputError("dimensions is currently not supported", parameter="dimensions", value=body.dimensions)
    if body.data is not None and body.task != "plugin":
        raise InputError("The 'data' field is only supported for the 'plugin' pooling task.", parameter="data")
    task = body.task or model.runner.default_task
    if task is None:
        raise InputError(
            f"task must be given: this model has no default task. Supported tasks: {model.manifest.tasks}",
            parameter="task",
        )
    model.runner.check_task(task)
    return task


async def create_classes(call: Call, body: ClassifyRequest) -> Answer:
    """Classify texts."""
    model = find_model(call.context.registry, body.model, "classify", "Classification")
    refuse_normalize(body.normalize)
    request = read_texts(body.input, body.messages, body, model, call.context.settings)
    options = plan_options(body, request, model, build_params(body.use_activation), special=body.add_special_tokens)
    outputs = await answer_texts(model, request, "classify", options, plan_urgency(body, call.context.settings))
    labels = model.manifest.labels

    def build() -> Answer:
        items = [_build_class(index, output, labels) for index, output in enumerate(outputs)]
        return answer_json(
            ClassifyResponse(
                id=call.name("classify", body.request_id),
                created=now(),
                model=body.model or show_name(model),
                data=items,
                usage=count_usage(outputs),
            )
        )

    return await call.encode(model, build, count_values(outputs))


def _build_class(index: int, output: Any, labels: Sequence[str]) -> ClassifyItem:
    data = output.outputs.data
    best = int(np.argmax(data))
    return ClassifyItem(
        index=index,
        label=labels[best] if labels else None,
        probs=encode_floats(data),
        num_classes=len(data),
        **describe_use(output),
    )


def read_wire(body: EncodingFields) -> WireFormat:
    """Return how a request wants vectors written.

    Raises:
        InputError: a type that is not served.
    """
    return build_wire(body.encoding_format, body.embed_dtype, body.endianness)


def build_bytes(name: str, model: str, outputs: Outputs, wire: WireFormat) -> Answer:
    """Return vectors one behind the other as raw bytes; ``bytes`` describes them in the header ``metadata``."""
    parts = [wire.encode_bytes(output.outputs.data) for output in outputs]
    if wire.encoding_format == "bytes_only":
        return answer_bytes(b"".join(parts), use_headers(outputs))
    items: list[dict[str, object]] = []
    start = 0
    for index, (part, output) in enumerate(zip(parts, outputs, strict=True)):
        end = start + len(part)
        items.append(
            {
                "index": index,
                "embed_dtype": wire.embed_dtype,
                "endianness": wire.endianness,
                "start": start,
                "end": end,
                "shape": list(output.outputs.data.shape),
            }
        )
        start = end
    usage = msgspec.to_builtins(count_usage(outputs))
    metadata = {"id": name, "created": now(), "model": model, "data": items}
    metadata["usage"] = {key: usage[key] for key in ("prompt_tokens", "total_tokens")}
    # Headers take ASCII alone, which is what json.dumps writes.
    described = (b"metadata", json.dumps(metadata).encode("ascii"))
    return answer_bytes(b"".join(parts), (described, *use_headers(outputs)))


EMBEDDINGS: Final = Endpoint(
    method="POST",
    path="/v1/embeddings",
    function=create_embeddings,
    summary="Embed texts (OpenAI)",
    body_type=EmbeddingsRequest,
    answer_type=EmbeddingsResponse,
    content_types=_BYTES,
    statuses=TASK_ERRORS,
    tag="OpenAI",
)

POOLING: Final = Endpoint(
    method="POST",
    path="/pooling",
    function=create_pooling,
    summary="Pool texts by any task of the model (vLLM)",
    body_type=PoolingRequest,
    answer_type=PoolingResponse,
    content_types=_BYTES,
    statuses=TEXT_ERRORS,
    tag="vLLM",
)

CLASSIFY: Final = Endpoint(
    method="POST",
    path="/classify",
    function=create_classes,
    summary="Classify texts (vLLM)",
    body_type=ClassifyRequest,
    answer_type=ClassifyResponse,
    statuses=TASK_ERRORS,
    tag="vLLM",
)
