"""Backbones whose attention goes through transformers' AttentionInterface: only the implementation's name changes.

So do mixtures of experts, through its ExpertsInterface. A class that computes attention by itself is traced as it is,
to standard operators.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from poolgraph.errors import UnsupportedArchitecture
from poolgraph.export.experts import EXPERTS_IMPLEMENTATION, register_experts
from poolgraph.export.rotary import replace_dynamic
from poolgraph.export.semantic import ATTENTION_IMPLEMENTATION, register_attention


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build a model whose attention layers are our semantic op where the class lets others compute them.

    Raises:
        UnsupportedArchitecture: The class chooses among attentions of its own.
    """
    register_attention()
    register_experts()
    attention = ATTENTION_IMPLEMENTATION if model_class._can_set_attn_implementation() else "eager"
    implementations = {"attn_implementation": attention, "experts_implementation": EXPERTS_IMPLEMENTATION}
    try:
        model = build_from_config(model_class, config, **implementations)
    except (KeyError, ValueError) as error:
        raise UnsupportedArchitecture(
            f"{model_class.__name__} cannot be built with the attention {attention!r}: {type(error).__name__}: {error}"
        ) from error
    replace_dynamic(model)
    return model


def build_from_config(model_class: Any, config: PretrainedConfig, **options: str) -> PreTrainedModel:
    """Build a model with a copy of ``config``: building writes the attention's name into the one that it is given.

    The copy says that a decoder keeps no keys and values, which only generating text needs.
    """
    config = copy.deepcopy(config)
    if getattr(config, "use_cache", False):
        config.use_cache = False
    with no_init_weights():  # what some classes draw their first values with cannot run on fake parameters
        model: PreTrainedModel = model_class._from_config(config, **options)
    return model
