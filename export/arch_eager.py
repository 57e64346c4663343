"""Backbones that are traced with attention of their own, to standard operators: what our semantic op cannot express.

So are attention sinks, which take a part of every token's weight, and classes that compute attention by themselves.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from poolgraph.export.arch_interface import build_with_attention

__all__ = ["build_backbone"]


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build a model whose attention is transformers' plain implementation."""
    return build_with_attention(model_class, config, "eager")
