"""Classifier and reward heads: a table of the layouts that checkpoints have, recognized by their tensors' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from transformers import PretrainedConfig

from poolgraph.errors import ExportError
from poolgraph.export.bind import OLD_SUFFIXES
from poolgraph.export.head import HeadPlan, HeadStep, StoredTensor
from poolgraph.export.head_activations import ACTIVATION_WORDS, OF_TRANSFORMERS
from poolgraph.export.layouts import Weights

IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"
RELU = "torch.nn.modules.activation.ReLU"
GELU = "torch.nn.modules.activation.GELU"

BERT_EPS = 1e-12
"""Of normalizations whose configuration has no such field (DistilBERT)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer or a layer normalization of a head.

    Attributes:
        tensor: Name of its tensors without ``.weight``; ``{base}`` stands for the backbone's prefix.
        activation: Dotted name of what follows; ``config:NAME`` reads transformers' name of it from the configuration.
        is_norm: Whether it is a layer normalization.
    """

    tensor: str
    activation: str = IDENTITY
    is_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayout:
    """How one family of checkpoints lays out its head.

    Attributes:
        pooling: Pooling mode, or ``config:NAME`` where the configuration says; None for a head of token rows alone.
        rows: Layers of token rows before they are pooled.
        pooled: Layers of pooled vectors alone. vLLM, too, gives a token only what follows the pooler.
        shared: Layers of pooled vectors and of token rows.
        model_types: Configurations that it holds for; empty for any.
        fields: Values that fields of the configuration must have.
    """

    pooling: str | None
    rows: tuple[Layer, ...] = ()
    pooled: tuple[Layer, ...] = ()
    shared: tuple[Layer, ...]
    model_types: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


SEQUENCE_LAYOUTS: dict[str, HeadLayout] = {
    "bert": HeadLayout(pooling="cls", pooled=(Layer("{base}.pooler.dense", TANH),), shared=(Layer("classifier"),)),
    "gte": HeadLayout(
        pooling="cls",
        pooled=(Layer("pooler.dense", TANH),),
        shared=(Layer("classifier"),),
        model_types=("gte",),
    ),
    "albert": HeadLayout(pooling="cls", pooled=(Layer("{base}.pooler", TANH),), shared=(Layer("classifier"),)),
    "distilbert": HeadLayout(pooling="cls", pooled=(Layer("pre_classifier", RELU),), shared=(Layer("classifier"),)),
    "deberta": HeadLayout(
        pooling="cls", pooled=(Layer("pooler.dense", "config:pooler_hidden_act"),), shared=(Layer("classifier"),)
    ),
    "modernbert": HeadLayout(
        pooling="config:classifier_pooling",
        pooled=(Layer("head.dense", "config:classifier_activation"), Layer("head.norm", is_norm=True)),
        shared=(Layer("classifier"),),
    ),
    "eurobert_late": HeadLayout(  # the mean of tokens' logits is the logits of the mean
        pooling="mean",
        rows=(Layer("dense", GELU),),
        shared=(Layer("classifier"),),
        model_types=("eurobert",),
        fields=MappingProxyType({"classifier_pooling": "late"}),
    ),
    "eurobert": HeadLayout(
        pooling="config:classifier_pooling",
        pooled=(Layer("dense", GELU),),
        shared=(Layer("classifier"),),
        model_types=("eurobert",),
    ),
    "electra": HeadLayout(
        pooling="cls",
        shared=(Layer("classifier.dense", GELU), Layer("classifier.out_proj")),
        model_types=("electra",),
    ),
    "roberta": HeadLayout(pooling="cls", shared=(Layer("classifier.dense", TANH), Layer("classifier.out_proj"))),
    "score_mlp": HeadLayout(pooling="lasttoken", shared=(Layer("score.0", RELU), Layer("score.2"))),
    "score_pooled": HeadLayout(pooling="config:pooling", shared=(Layer("score"),)),
    "score": HeadLayout(pooling="lasttoken", shared=(Layer("score"),)),
}
"""Heads of sequence classifiers. The first whose tensors and configuration are all there is taken."""

TOKEN_LAYOUTS: dict[str, HeadLayout] = {
    "modernbert": HeadLayout(
        pooling=None,
        shared=(
            Layer("head.dense", "config:classifier_activation"),
            Layer("head.norm", is_norm=True),
            Layer("classifier"),
        ),
    ),
    "classifier": HeadLayout(pooling=None, shared=(Layer("classifier"),)),
    "score_mlp": HeadLayout(pooling=None, shared=(Layer("score.0", RELU), Layer("score.2"))),
    "score": HeadLayout(pooling=None, shared=(Layer("score"),)),
    "v_head": HeadLayout(pooling=None, shared=(Layer("v_head"),)),
}
"""Heads of token classifiers and of reward models."""

POOLING_WORDS = {"cls": "cls", "bos": "cls", "mean": "mean", "last": "lasttoken", "avg": "mean"}
"""What configurations call pooling modes."""


def find_layout(
    layouts: dict[str, HeadLayout], weights: Weights, config: PretrainedConfig, base_prefix: str
) -> HeadLayout:
    """Return the first layout that fits a checkpoint.

    Raises:
        ExportError: none does; the message has the tensors outside the backbone.
    """
    for layout in layouts.values():
        layers = (*layout.rows, *layout.pooled, *layout.shared)
        named = not layout.model_types or config.model_type in layout.model_types
        named = named and all(getattr(config, name, None) == value for name, value in layout.fields.items())
        names = [str(it) for it in (layout.pooling, *(layer.activation for layer in layers))]
        configured = named and all(_is_set(name, config) for name in names)
        if configured and all(fits_layer(layer, weights, base_prefix) for layer in layers):
            return layout
    outside = sorted(name for name in weights.names if not name.startswith(f"{base_prefix}."))
    raise ExportError(
        f"no head that poolgraph knows fits the checkpoint's tensors outside the backbone, {outside[:20]}; "
        "export it as an embedding model with --convert embed"
    )


def plan_layout(
    layout: HeadLayout, weights: Weights, config: PretrainedConfig, base_prefix: str, **more: Any
) -> HeadPlan:
    """Describe a layout's head with the checkpoint's own widths.

    Args:
        layout: One that fits.
        weights: The checkpoint's tensors.
        config: Its configuration.
        base_prefix: The backbone's prefix.
        **more: Other fields of the plan.
    """
    pooling = layout.pooling
    if pooling is not None and pooling.startswith("config:"):
        pooling = read_pooling(config, pooling.removeprefix("config:"))
    return HeadPlan(
        kind="logits",
        pooling=None if pooling is None else (pooling,),
        rows=plan_layers(layout.rows, weights, config, base_prefix),
        pooled=plan_layers(layout.pooled, weights, config, base_prefix),
        shared=plan_layers(layout.shared, weights, config, base_prefix),
        **more,
    )


def read_pooling(config: PretrainedConfig, name: str) -> str:
    """Return the pooling mode that a field of the configuration asks for.

    Raises:
        ExportError: a word for none.
    """
    word = str(getattr(config, name))
    if word not in POOLING_WORDS:
        raise ExportError(f"config.json asks for the pooling {word!r}; known are {sorted(POOLING_WORDS)}")
    return POOLING_WORDS[word]


def _is_set(name: str, config: PretrainedConfig) -> bool:
    """Whether the configuration has the field that ``config:FIELD`` reads; anything else is set already."""
    return not name.startswith("config:") or hasattr(config, name.removeprefix("config:"))


def fits_layer(layer: Layer, weights: Weights, base_prefix: str) -> bool:
    """Whether a checkpoint has the layer."""
    return _find_tensor(f"{layer.tensor.format(base=base_prefix)}.weight", weights) is not None


def _find_tensor(name: str, weights: Weights) -> str | None:
    """Return the checkpoint's name of a head's tensor, None where it has none."""
    spellings = (name, *(name.replace(new, old) for new, old in OLD_SUFFIXES if name.endswith(new)))
    return next((spelling for spelling in spellings if spelling in weights.names), None)


def plan_layers(
    layers: Sequence[Layer], weights: Weights, config: PretrainedConfig, base_prefix: str
) -> tuple[HeadStep, ...]:
    """Describe layers that a checkpoint has, with its own widths."""
    return tuple(_plan_layer(layer, layer.tensor.format(base=base_prefix), weights, config) for layer in layers)


def _plan_layer(layer: Layer, name: str, weights: Weights, config: PretrainedConfig) -> HeadStep:
    found = {part: _find_tensor(f"{name}.{part}", weights) for part in ("weight", "bias")}
    parts = {part: tensor for part, tensor in found.items() if tensor is not None}
    shape = weights.shape(parts["weight"])
    inner = "norm" if layer.is_norm else "linear"
    tensors = {
        f"{inner}.{part}": StoredTensor(folder=weights.folder, name=weights.stored_name(tensor))
        for part, tensor in parts.items()
    }
    if layer.is_norm:
        eps = next((float(getattr(config, n)) for n in ("norm_eps", "layer_norm_eps") if hasattr(config, n)), BERT_EPS)
        return HeadStep(
            kind="LayerNorm", config={"dimension": shape[0], "eps": eps, "bias": "bias" in parts}, tensors=tensors
        )
    return HeadStep(
        kind="Dense",
        config={
            "in_features": shape[1],
            "out_features": shape[0],
            "bias": "bias" in parts,
            "activation_function": _activation_name(layer.activation, config),
        },
        tensors=tensors,
    )


def _activation_name(activation: str, config: PretrainedConfig) -> str:
    """Return a name that ``build_activation`` knows; transformers' ``gelu`` and torch's GELU are the same function."""
    if not activation.startswith("config:"):
        return activation
    word = str(getattr(config, activation.removeprefix("config:")))
    names = {"gelu": GELU, "relu": RELU, "tanh": TANH} | {name: OF_TRANSFORMERS + name for name in ACTIVATION_WORDS}
    if word in names:
        return names[word]
    raise ExportError(f"config.json asks for the activation {word!r} in the head; those compiled are {sorted(names)}")
