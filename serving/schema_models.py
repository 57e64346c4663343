"""What the server says about itself: models, version, readiness."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ModelCard(msgspec.Struct, kw_only=True):
    """One name under which a model is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "poolgraph"
    root: str
    parent: None = None
    max_model_len: int
    permission: list[Any] = []


class ModelList(msgspec.Struct, kw_only=True):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class VersionResponse(msgspec.Struct, kw_only=True):
    """The version of poolgraph."""

    version: str


class ReadyResponse(msgspec.Struct, kw_only=True):
    """Every model is warm and still gives a stored text its vector."""

    status: Literal["ready"] = "ready"
