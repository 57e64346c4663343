"""Activations of a head's linear layers, built by the names that files and configurations have for them."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN

from poolgraph.errors import ExportError

DEFAULT_ACTIVATION = "torch.nn.modules.activation.Tanh"
"""Sentence-transformers' default for a Dense whose configuration names none."""

OF_TRANSFORMERS = "transformers:"
"""Stands before the word that transformers has for an activation; sentence-transformers has no such names."""

ACTIVATION_WORDS = (
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "leaky_relu",
    "linear",
    "quick_gelu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
)
"""The words of transformers' ACT2FN for functions that have no parameters and whose bits do not depend on the batch."""

OVER_AN_AXIS = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
"""Activations that take an axis, which no file names: torch chooses the last one of pooled vectors."""


def build_activation(name: str | None) -> nn.Module:
    """Return the activation called by its dotted name.

    Raises:
        ExportError: not a class of torch.nn.modules, the only ones that are loaded by name.
    """
    if name is None:
        return nn.Identity()
    if name.startswith(OF_TRANSFORMERS):
        return _build_word(name.removeprefix(OF_TRANSFORMERS))
    module, _, class_name = name.rpartition(".")
    found = getattr(nn, class_name, None)
    if not module.startswith("torch.nn") or not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ExportError(
            f"activation function {name!r} is not a class of torch.nn.modules, the only ones loaded by name"
        )
    try:
        activation: nn.Module = found(dim=-1) if issubclass(found, OVER_AN_AXIS) else found()
    except TypeError as error:
        raise ExportError(
            f"activation function {name!r} cannot be made without arguments, of which files hold none: {error}"
        ) from error
    return activation


def _build_word(word: str) -> nn.Module:
    if word not in ACTIVATION_WORDS:
        raise ExportError(f"the activation {word!r} is not compiled; those that are: {list(ACTIVATION_WORDS)}")
    activation: nn.Module = ACT2FN[word]
    return activation
