"""``POST /pooling`` and ``POST /classify``: vLLM's requests and answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from poolgraph.serving.schema_common import EncodingFields, TextFields, TokenUse, Usage
from poolgraph.tasks import Side


class PoolingRequest(EncodingFields, kw_only=True):
    """Texts to pool by any task of the model.

    Attributes:
        task: ``embed``, ``classify``, ``token_embed`` or ``token_classify``; null is the model's default.
        use_activation: Whether the answer is normalized, or gets the classifier's activation.
        dimensions: Refused, as in vLLM.
        normalize: Refused; its name today is ``use_activation``.
        data: Refused: there are no plugins.
        side: Of the task ``embed``, as of ``/v1/embeddings``.
    """

    task: str | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    data: Any = None
    side: Side | None = None


class PoolingItem(TokenUse, kw_only=True):
    """The pooled value of one text: numbers, rows of numbers, or base64."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float | list[float]] | str


class PoolingResponse(msgspec.Struct, kw_only=True):
    """Pooled values in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PoolingItem]
    usage: Usage


class ClassifyRequest(TextFields, kw_only=True):
    """Texts to classify.

    Attributes:
        use_activation: False gives logits.
        normalize: Refused; its name today is ``use_activation``.
    """

    use_activation: bool | None = None
    normalize: bool | None = None


class ClassifyItem(TokenUse, kw_only=True):
    """The class probabilities of one text, and the name of the likeliest."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyResponse(msgspec.Struct, kw_only=True):
    """Probabilities in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassifyItem]
    usage: Usage
