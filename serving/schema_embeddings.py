"""``POST /v1/embeddings``: OpenAI's request and answer with vLLM's fields."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from poolgraph.serving.schema_common import EncodingFields, TokenUse, Usage
from poolgraph.tasks import Side

ChunkSize = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class LateChunkingFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Token embeddings averaged over chunks of that many tokens."""

    chunk_size: ChunkSize


class EmbeddingsRequest(EncodingFields, kw_only=True):
    """Texts to embed.

    Attributes:
        dimensions: Width of a shortened embedding, of models trained for it.
        use_activation: Whether embeddings are normalized; null is the model's own way.
        normalize: Refused; its name today is ``use_activation``.
        late_chunking_params: For models that embed each token.
        side: Whether the texts are queries or documents, of models that answer the two differently (inference-free
            SPLADE); null means what the model takes texts for.
    """

    dimensions: Dimensions | None = None
    use_activation: bool | None = None
    normalize: bool | None = None
    late_chunking_params: LateChunkingFields | None = None
    side: Side | None = None


class ChunkRange(msgspec.Struct, kw_only=True):
    """The tokens of a chunk and its characters, each as first and one past the last."""

    token_range: tuple[int, int]
    char_range: tuple[int, int] | None


class LateChunkingAnswer(msgspec.Struct, kw_only=True):
    """The chunks that the rows of an answer belong to."""

    chunk_size: int
    input_tokens: int
    chunks: list[ChunkRange]
    strategy: Literal["fixed_tokens"] = "fixed_tokens"


class EmbeddingItem(TokenUse, kw_only=True):
    """The embedding of one text: numbers, rows of numbers where tokens are embedded, or base64."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float | list[float]] | str
    late_chunking: LateChunkingAnswer | msgspec.UnsetType | None = msgspec.UNSET


class EmbeddingsResponse(msgspec.Struct, kw_only=True):
    """Embeddings in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[EmbeddingItem]
    usage: Usage
