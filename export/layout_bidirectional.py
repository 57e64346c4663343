"""Decoders of transformers' that publishers made read in both directions: voyage-4-nano, Giga-Embeddings, LFM2.5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from poolgraph.export.layouts import Json, Layout, read_rope

VOYAGE = MappingProxyType({"VoyageQwen3BidirectionalEmbedModel": "Qwen3Model", "Qwen3BidirectionalModel": "Qwen3Model"})
"""vLLM's name and the publishers'."""

GIGA = MappingProxyType({"DeepseekV3BidirectionalModel": "DeepseekV3Model"})

LFM2 = MappingProxyType({"Lfm2BidirectionalModel": "Lfm2BidirectionalModel"})
"""A class of ours: its convolutions read both ways, too."""


PROJECTION = "linear.weight"


def _is_named(model_type: str, classes: Mapping[str, str]) -> Callable[[Json], bool]:
    def recognize(published: Json) -> bool:
        named = any(name in classes for name in published.get("architectures") or ())
        return published.get("model_type") == model_type and named

    return recognize


def _is_bidirectional(model_type: str, classes: Mapping[str, str]) -> Callable[[Json], bool]:
    is_named = _is_named(model_type, classes)

    def recognize(published: Json) -> bool:
        flagged = published.get("model_type") == model_type and bool(published.get("use_bidirectional_attention"))
        return flagged or is_named(published)

    return recognize


def _layout(
    model_type: str, classes: Mapping[str, str], *, base: float = 10000.0, projection: str | None = None
) -> Layout:
    return Layout(
        model_type=model_type,
        recognize=_is_bidirectional(model_type, classes),
        classes=classes,
        derive=lambda published: {"rope_parameters": read_rope(published, base), "is_causal": False},
        projection=projection,
    )


QWEN3 = _layout("qwen3", VOYAGE, projection=PROJECTION)
"""By the flag alone, which says nothing of a matrix."""

BIDIRECTIONAL = (
    replace(QWEN3, recognize=_is_named("qwen3", VOYAGE), must_project=True),
    QWEN3,
    _layout("deepseek_v3", GIGA),
    _layout("lfm2", LFM2, base=1e6),
)
