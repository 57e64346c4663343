"""Backbones whose attention goes through transformers' AttentionInterface: nothing to replace but the implementation's name."""

from __future__ import annotations

import copy

from transformers import PretrainedConfig, PreTrainedModel

from poolgraph.export.semantic import ATTENTION_IMPLEMENTATION, register_attention


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build a model whose attention layers are our semantic op.

    The config is copied first: ``_from_config`` writes the attention's name into the one that it is given.
    """
    register_attention()
    model: PreTrainedModel = model_class._from_config(
        copy.deepcopy(config), attn_implementation=ATTENTION_IMPLEMENTATION
    )
    return model
