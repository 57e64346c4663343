"""Llama under other names: NVIDIA's bidirectional Llama (llama-nemotron-embed and -rerank) and InternLM2."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming, WeightTransform

from poolgraph.errors import UnsupportedArchitecture
from poolgraph.export.layouts import Json, Layout, check_fixed, read_rope

BIDIRECTIONAL_TYPES = frozenset({"llama_bidirec", "llama_nemotron"})
POOLINGS = ("avg", "cls", "last")
"""What published configurations ask for (vLLM's table of them)."""


class SplitGroups(ConversionOps):
    """InternLM2's fused projection to query, key and value.

    Its rows are one group a key and value head: the group's query heads, then its key head, then its value head.
    """

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[torch.Tensor]]:
        """Split (groups * (queries a group + 2) * head_dim, hidden_size)."""
        config = kwargs["config"]
        fused = input_dict[source_patterns[0]]
        rows = fused[0] if isinstance(fused, list) else fused
        groups, width = int(config.num_key_value_heads), rows.shape[-1]
        size = int(config.num_attention_heads) // groups
        heads = rows.view(groups, size + 2, -1, width)
        parts = (heads[:, :size], heads[:, size], heads[:, size + 1])
        return {
            target: [part.reshape(-1, width).contiguous()] for target, part in zip(target_patterns, parts, strict=True)
        }


def _derive_bidirectional(published: Json) -> dict[str, Any]:
    check_fixed(published, {"temperature": 1.0})
    if published.get("pooling") not in POOLINGS:
        raise UnsupportedArchitecture(
            f"config.json of model_type {published['model_type']!r} has pooling {published.get('pooling')!r}; "
            f"it is one of {', '.join(POOLINGS)}"
        )
    return {"rope_parameters": read_rope(published), "is_causal": False}


def _derive_internlm(published: Json) -> dict[str, Any]:
    check_fixed(published, {"bias": False})
    return {"rope_parameters": read_rope(published), "attention_bias": False, "mlp_bias": False}


def _internlm_transforms() -> Sequence[WeightTransform]:
    projections = [f"self_attn.{name}_proj.weight" for name in ("q", "k", "v")]
    return (
        WeightRenaming("tok_embeddings", "embed_tokens"),
        WeightRenaming(r"attention\.wo", "self_attn.o_proj"),
        WeightRenaming("attention_norm", "input_layernorm"),
        WeightRenaming("ffn_norm", "post_attention_layernorm"),
        WeightRenaming(r"feed_forward\.w1", "mlp.gate_proj"),
        WeightRenaming(r"feed_forward\.w3", "mlp.up_proj"),
        WeightRenaming(r"feed_forward\.w2", "mlp.down_proj"),
        WeightConverter("attention.wqkv.weight", projections, operations=[SplitGroups()]),
    )


LLAMA_BIDIRECTIONAL = Layout(
    model_type="llama",
    recognize=lambda published: published.get("model_type") in BIDIRECTIONAL_TYPES,
    classes=MappingProxyType({"LlamaBidirectionalModel": "LlamaModel"}),
    derive=_derive_bidirectional,
)

INTERNLM2 = Layout(
    model_type="llama",
    recognize=lambda published: published.get("model_type") == "internlm2",
    classes=MappingProxyType({"InternLM2Model": "LlamaModel", "InternLM2ForCausalLM": "LlamaForCausalLM"}),
    derive=_derive_internlm,
    transforms=_internlm_transforms,
)
