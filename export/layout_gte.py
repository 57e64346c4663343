"""The layout of Alibaba's GTE: gte-multilingual-base, gte-base-en-v1.5, rerankers, snowflake-arctic-embed-m-v2.0."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from poolgraph.errors import UnsupportedArchitecture
from poolgraph.export.layouts import Json, Layout, check_fixed

FIXED = MappingProxyType(
    {
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
    }
)
"""Settings of the published code that no published checkpoint changes and that transformers' class fixes."""


def _is_published(published: Json) -> bool:
    """Whether a configuration is of Alibaba's code, under its own model type or, as Snowflake's, transformers'."""
    kind = published.get("model_type")
    return kind == "new" or (kind == "gte" and "pack_qkv" in published)


def _derive(published: Json) -> dict[str, Any]:
    check_fixed(published, FIXED)
    return {"rope_parameters": _rope(published), "type_vocab_size": published.get("type_vocab_size", 0)}


def _rope(published: Json) -> dict[str, Any]:
    """Return rotary parameters; fixed NTK scaling is a larger base and positions divided by a constant.

    https://kexue.fm/archives/9706, equation 6: the frequency i of a head of size d becomes
    (base * factor)^(-2i/d) / factor^(2/d), whatever the text's length.
    """
    if published.get("rope_parameters"):
        return dict(published["rope_parameters"])
    base, scaling = float(published.get("rope_theta", 10000.0)), published.get("rope_scaling")
    if not scaling:
        return {"rope_type": "default", "rope_theta": base}
    if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
        raise UnsupportedArchitecture(f"rope_scaling {scaling} is not supported; what is: {{'type': 'ntk', 'factor'}}")
    factor, head_dim = float(scaling["factor"]), published["hidden_size"] // published["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": base * factor, "factor": factor ** (2 / head_dim)}


GTE = Layout(
    model_type="gte",
    recognize=_is_published,
    classes=MappingProxyType(
        {
            "NewModel": "GteModel",
            "GteNewModel": "GteModel",
            "NewForSequenceClassification": "GteForSequenceClassification",
            "GteNewForSequenceClassification": "GteForSequenceClassification",
            "NewForTokenClassification": "GteForTokenClassification",
            "NewForMaskedLM": "GteForMaskedLM",
        }
    ),
    derive=_derive,
)
