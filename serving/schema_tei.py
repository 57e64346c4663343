"""Routes of text-embeddings-inference: ``/embed``, ``/embed_all``, ``/predict``, ``/similarity``, ``/info``."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from poolgraph.runtime.tokenization import TruncationSide
from poolgraph.serving.schema_embeddings import Dimensions
from poolgraph.tasks import Side

TeiInput = str | list[str | int | list[int]]
"""A text, the token ids of one, or a list of both."""

Direction = Literal["Left", "Right", "left", "right"]
"""The document has the first two, which are those of text-embeddings-inference."""

TRUNCATION_SIDES: Final[dict[str, TruncationSide]] = {"left": "left", "right": "right"}
"""By a direction in lower case."""


class TeiEmbedRequest(msgspec.Struct, kw_only=True):
    """Texts to embed.

    Attributes:
        inputs: The texts.
        model: A name of ``/v1/models``; may be left out where one model is served.
        truncate: Whether longer texts are cut to the model's limit.
        truncation_direction: Where they are cut.
        normalize: Whether embeddings are normalized.
        prompt_name: Name of a prompt of the model, put before each text.
        dimensions: Width of a shortened embedding, of models trained for it.
        side: Whether the texts are queries or documents, of models that answer the two differently (inference-free
            SPLADE); null means that whose prompt is named, else what the model takes texts for.
    """

    inputs: TeiInput
    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: Dimensions | None = None
    side: Side | None = None


class TeiEmbedAllRequest(msgspec.Struct, kw_only=True):
    """Texts whose tokens are embedded; fields as of ``/embed``."""

    inputs: TeiInput
    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class TeiEmbedSparseRequest(msgspec.Struct, kw_only=True):
    """Texts whose words are weighed; fields as of ``/embed``, and two more.

    Attributes:
        normalize: Whether embeddings are normalized; without it they are as the model says.
        dimensions: Refused: leading words of a vocabulary mean nothing.
        side: Which route of an inference-free SPLADE they take.
    """

    inputs: TeiInput
    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: Dimensions | None = None
    side: Side | None = None


class TeiSparseValue(msgspec.Struct, kw_only=True):
    """A word's token id and its weight."""

    index: int
    value: float


class TeiPredictRequest(msgspec.Struct, kw_only=True):
    """A text, a pair of texts ``[a, b]``, or a list of ``[a]`` and ``[a, b]``, to classify.

    Attributes:
        inputs: The texts.
        model: A name of ``/v1/models``; may be left out where one model is served.
        truncate: Whether longer texts are cut to the model's limit.
        truncation_direction: Where they are cut.
        raw_scores: Whether logits are returned.
    """

    inputs: str | list[str | list[str]]
    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    raw_scores: bool = False


class TeiPrediction(msgspec.Struct, kw_only=True):
    """A class and its score."""

    score: float
    label: str


class TeiSimilarityInputs(msgspec.Struct, kw_only=True):
    """A sentence and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class TeiSimilarityParameters(msgspec.Struct, kw_only=True):
    """How the sentences are read; fields as of ``/embed``."""

    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class TeiSimilarityRequest(msgspec.Struct, kw_only=True):
    """Sentences to compare."""

    inputs: TeiSimilarityInputs
    model: str | None = None
    parameters: TeiSimilarityParameters | None = None


class TeiInfo(msgspec.Struct, kw_only=True):
    """The model that is served first, in the words of text-embeddings-inference."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int | None
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None
