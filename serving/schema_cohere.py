"""``POST /v2/embed`` and ``/v1/embed``: Cohere's request and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from poolgraph.serving.schema_common import ContentPart, Priority, Seconds, TokenUse
from poolgraph.serving.schema_embeddings import Dimensions


class CohereInput(msgspec.Struct, kw_only=True):
    """A text in parts."""

    content: list[ContentPart]


class CohereEmbedRequest(msgspec.Struct, kw_only=True):
    """Texts to embed: exactly one of ``texts`` and ``inputs``.

    Attributes:
        model: A name of ``/v1/models``; may be left out where one model is served.
        input_type: Name of a prompt of the model; ``search_query`` and ``search_document`` also mean its prompts
            ``query`` and ``document`` (or ``passage``).
        texts: Texts.
        images: Refused: no model here takes images.
        inputs: Texts in parts.
        output_dimension: Width of a shortened embedding, of models trained for it.
        embedding_types: Forms in which each embedding is returned; default ``float``, of ``/v1/embed`` a plain list.
        truncate: Where a longer text is cut; with ``NONE`` it is an error.
        max_tokens: Tokens of a text; null, and more than the model takes, is the model's limit.
        priority: Lower comes first.
        timeout: Seconds in which the answer is wanted.
    """

    model: str | None = None
    input_type: str | None = None
    texts: list[str] | None = None
    images: list[Any] | None = None
    inputs: list[CohereInput] | None = None
    output_dimension: Dimensions | None = None
    embedding_types: list[Literal["float", "binary", "ubinary", "base64"]] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    priority: Priority = 0
    timeout: Seconds | None = None


class EmbeddingsByType(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The embeddings in each form that was asked for; base64 is of little-endian float32."""

    float_: list[list[float]] | None = msgspec.field(default=None, name="float")
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class ApiVersion(msgspec.Struct, kw_only=True):
    """Cohere's version of the route."""

    version: str


class BilledUnits(msgspec.Struct, kw_only=True):
    """Tokens of the texts."""

    input_tokens: int
    image_tokens: int = 0


class CohereMeta(msgspec.Struct, kw_only=True):
    """About the answer; ``token_use`` has a row a text."""

    api_version: ApiVersion
    billed_units: BilledUnits
    token_use: list[TokenUse]


class CohereEmbedResponse(msgspec.Struct, kw_only=True, tag_field="response_type", tag="embeddings_by_type"):
    """Embeddings in the order of the texts, in each form."""

    id: str
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: CohereMeta


class CohereFloatsResponse(msgspec.Struct, kw_only=True, tag_field="response_type", tag="embeddings_floats"):
    """Embeddings in the order of the texts, as ``/v1/embed`` has them where no forms are asked for."""

    id: str
    embeddings: list[list[float]]
    texts: list[str]
    meta: CohereMeta
