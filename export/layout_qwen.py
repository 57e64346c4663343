"""Qwen3 that reads in both directions: voyage-4-nano with its projection, and others without one."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from poolgraph.export.layouts import Json, Layout, read_rope

BIDIRECTIONAL_CLASSES = MappingProxyType(
    {"VoyageQwen3BidirectionalEmbedModel": "Qwen3Model", "Qwen3BidirectionalModel": "Qwen3Model"}
)
"""vLLM's name and the publishers'."""


def _is_bidirectional(published: Json) -> bool:
    named = any(name in BIDIRECTIONAL_CLASSES for name in published.get("architectures") or ())
    return published.get("model_type") == "qwen3" and (named or bool(published.get("use_bidirectional_attention")))


def _derive(published: Json) -> dict[str, Any]:
    return {"rope_parameters": read_rope(published), "is_causal": False}


QWEN3_BIDIRECTIONAL = Layout(
    model_type="qwen3",
    recognize=_is_bidirectional,
    classes=BIDIRECTIONAL_CLASSES,
    derive=_derive,
    projection="linear.weight",
)
