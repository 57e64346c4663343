"""The layout of Nomic's BERT: nomic-embed-text-v1, v1.5 and v2-moe, CodeRankEmbed, snowflake-arctic-embed-m-long."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming, WeightTransform

from poolgraph.export.layouts import Json, Layout, check_fixed

FIELDS = MappingProxyType(
    {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "layer_norm_epsilon": "layer_norm_eps",
    }
)

FIXED = MappingProxyType(
    {
        "causal": False,
        "expert_choice_router": False,
        "moe_normalize_expert_weights": False,
        "num_shared_experts": 0,
        "parallel_block": False,
        "prenorm": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "use_rms_norm": False,
    }
)
"""Settings of the published code that no published checkpoint changes."""

BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")
GATED = MappingProxyType({"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"})


def _derive(published: Json) -> dict[str, Any]:
    check_fixed(published, FIXED)
    activation, multiple = published.get("activation_function", "gelu"), published.get("pad_vocab_size_multiple") or 1
    return {
        "hidden_act": GATED.get(activation, activation),
        "pad_token_id": published.get("pad_token_id") or 0,
        "vocab_size": -(-published["vocab_size"] // multiple) * multiple,
        **_positions(published),
    }


def _positions(published: Json) -> dict[str, Any]:
    """Return rotary parameters; a scaling factor makes them dynamic beyond the trained length."""
    base, factor = float(published.get("rotary_emb_base", 10000.0)), published.get("rotary_scaling_factor")
    longest = published.get("n_positions") or 2048
    if not factor:
        default = {"rope_type": "default", "rope_theta": base}
        return {
            "max_position_embeddings": longest,
            "rope_parameters": published.get("rope_parameters") or default,
        }
    return {
        "max_position_embeddings": published.get("max_trained_positions") or 2048,
        "n_positions": longest,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": base, "factor": float(factor)},
    }


def _is_nomic(published: Json) -> bool:
    return published.get("model_type") == "nomic_bert" and "n_embd" in published


def _is_gated(published: Json) -> bool:
    return published.get("activation_function") in GATED and not any(published.get(bias) for bias in BIASES)


def _expert_transforms() -> Sequence[WeightTransform]:
    return (
        WeightRenaming(r"mlp\.fc1", "mlp.up_proj"),
        WeightRenaming(r"mlp\.router\.layer", "mlp.router"),
        WeightRenaming(r"mlp\.experts\.mlp\.w1", "mlp.up_proj.weight"),
        WeightRenaming(r"mlp\.experts\.bias", "mlp.down_proj.bias"),
        WeightConverter("mlp.experts.mlp.w2", "mlp.down_proj.weight", operations=[Transpose(0, 1)]),
    )


NOMIC = Layout(
    model_type="nomic_bert",
    recognize=lambda published: _is_nomic(published) and _is_gated(published),
    fields=FIELDS,
    derive=_derive,
)

NOMIC_MOE = Layout(
    model_type="nomic_bert",
    recognize=lambda published: _is_nomic(published) and not _is_gated(published),
    classes=MappingProxyType({"NomicBertModel": "NomicBertMoeModel"}),
    fields=FIELDS,
    derive=_derive,
    transforms=_expert_transforms,
)
