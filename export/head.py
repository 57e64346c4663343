"""The head of a plan: sentence-transformers' modules as torch modules, whose parameters may be fake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from poolgraph.errors import ExportError
from poolgraph.export.resolve import ExportPlan
from poolgraph.export.sentence_transformers import HeadModule
from poolgraph.poolers.head import Dense, LayerNorm, Normalize, Truncate

DEFAULT_ACTIVATION = "torch.nn.modules.activation.Tanh"
"""Sentence-transformers' default for a Dense whose configuration names none."""


def build_head_modules(plan: ExportPlan) -> list[nn.Module]:
    """Return the modules after the pooling; a checkpoint without sentence-transformers files normalizes, as in vLLM."""
    if not plan.sentence_transformer.pooling and not plan.sentence_transformer.head:
        return [Normalize()]
    return [_build(module) for module in plan.sentence_transformer.head]


def head_input_size(plan: ExportPlan) -> int | None:
    """Return the width that the head's first sized module takes, None when the head fits any width."""
    for module in plan.sentence_transformer.head:
        if module.kind == "Dense":
            return int(module.config["in_features"])
        if module.kind == "LayerNorm":
            return int(module.config["dimension"])
    return None


def head_output_size(plan: ExportPlan, input_size: int) -> int:
    """Return the width of the head's result for an input of ``input_size``."""
    size = input_size
    for module in plan.sentence_transformer.head:
        if module.kind == "Dense":
            size = int(module.config["out_features"])
        elif module.kind == "Truncate":
            size = min(size, int(module.config["size"]))
    return size


def build_activation(name: str | None) -> nn.Module:
    """Return the activation called by its dotted name.

    Raises:
        ExportError: not a class of torch.nn.modules, the only ones that are loaded by name.
    """
    if name is None:
        return nn.Identity()
    module, _, class_name = name.rpartition(".")
    found = getattr(nn, class_name, None)
    if not module.startswith("torch.nn") or not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ExportError(
            f"activation function {name!r} is not a class of torch.nn.modules, the only ones loaded by name"
        )
    activation: nn.Module = found()
    return activation


def _build(module: HeadModule) -> nn.Module:
    try:
        return BUILDERS[module.kind](module.config)
    except KeyError as error:
        raise ExportError(f"the configuration of {module.kind} at {module.path!r} lacks {error}") from error


def _build_dense(config: Mapping[str, Any]) -> Dense:
    return Dense(
        int(config["in_features"]),
        int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=build_activation(config.get("activation_function", DEFAULT_ACTIVATION)),
        use_residual=bool(config.get("use_residual", False)),
    )


BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = MappingProxyType(
    {
        "Dense": _build_dense,
        "LayerNorm": lambda config: LayerNorm(int(config["dimension"])),
        "Normalize": lambda config: Normalize(),
        "Dropout": lambda config: nn.Identity(),
        "Truncate": lambda config: Truncate(int(config["size"])),
    }
)
"""How each kind of head module is built from its configuration."""
