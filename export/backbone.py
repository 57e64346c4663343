"""The backbone of a checkpoint: its configuration, its class in transformers and what kind of model it came from."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from poolgraph.errors import PoolgraphError, UnsupportedArchitecture
from poolgraph.export.architectures import (
    ARCHITECTURES,
    COUNTED_POSITIONS,
    REFUSED_CLASSES,
    Architecture,
    PositionRule,
)
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.layout_table import LAYOUTS
from poolgraph.export.layouts import Layout, Weights, convert_weights, find_layout

Form = Literal[
    "embedding",
    "sequence_logits",
    "token_logits",
    "token_reward",
    "language_model",
    "late_interaction",
    "sparse",
    "many_vectors",
]
"""What a checkpoint's class answers."""

FORMS: tuple[tuple[str, Form], ...] = (
    ("ForSequenceClassification", "sequence_logits"),
    ("ForTokenClassification", "token_logits"),
    ("ForProcessRewardModel", "token_reward"),
    ("ForRewardModel", "token_reward"),
    ("ForRewardModeling", "token_reward"),
    ("ForCausalLM", "language_model"),
    ("LMHeadModel", "language_model"),
    ("ForMaskedLM", "embedding"),
    ("ForPreTraining", "embedding"),
    ("ForTextEncoding", "embedding"),
    ("SpladeSparseEmbeddingModel", "sparse"),
    ("BgeM3EmbeddingModel", "many_vectors"),
    ("EmbeddingModel", "embedding"),
    ("Model", "embedding"),
)
"""Endings of class names, the first that fits holds (vLLM's _SUFFIX_TO_DEFAULTS)."""

OWN_CLASSES = MappingProxyType(
    {
        "JinaBertModel": "arch_jina_bert",
        "Lfm2BidirectionalModel": "arch_lfm2",
        "NomicBertMoeModel": "arch_nomic_moe",
    }
)
"""Classes that transformers lacks, and our modules that have them."""

LATE_INTERACTION_CLASSES = ("HF_ColBERT",)
LATE_INTERACTION_PREFIX = "ColBERT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The part of a checkpoint that is traced.

    Attributes:
        folder: Where its configuration and its tensors are.
        config: Its configuration, overrides applied.
        architecture: The checkpoint's class name.
        form: What a model of that class answers.
        row: Its row of the architecture table, or one made for a class without a row.
        model_class: The transformers class of the backbone.
        layout: The published layout that it was translated from, None for transformers' own.
    """

    folder: Path
    config: PretrainedConfig
    architecture: str
    form: Form
    row: Architecture
    model_class: type[PreTrainedModel]
    layout: Layout | None = None

    def open_weights(self) -> Weights:
        """Open the checkpoint's tensors, under transformers' names."""
        return convert_weights(WeightFolder(self.folder), self.layout, self.model_class.__name__, self.config)

    @property
    def hidden_size(self) -> int:
        """Width of the rows, by optimum's table of configuration names."""
        from optimum.utils import NormalizedConfigManager

        try:
            normalized = NormalizedConfigManager.get_normalized_config_class(self.config.model_type)(self.config)
        except KeyError:
            return int(self.config.hidden_size)
        return int(normalized.hidden_size)

    @property
    def has_row(self) -> bool:
        """Whether the backbone's class is in the architecture table, so that what mixes its tokens is known."""
        return self.model_class.__name__ in ARCHITECTURES

    @property
    def full_class(self) -> type[PreTrainedModel] | None:
        """The transformers class of the whole checkpoint, None where transformers has none."""
        return find_class(self.architecture)


def find_backbone(folder: Path, options: Mapping[str, Any], *, trust_remote_code: bool) -> Backbone:
    """Read a folder's configuration and find the class of its backbone.

    Raises:
        UnsupportedArchitecture: a model type or a class that transformers does not know, or quantized weights.
    """
    config, layout = load_config(folder, options, trust_remote_code=trust_remote_code)
    architecture = str((config.architectures or ["?"])[0])
    _check_refused(architecture)
    _check_floats(config)
    own = None if layout is None else layout.backbone
    name = architecture if architecture in ARCHITECTURES else own or class_for_task(config, "feature-extraction")
    if name is None:
        raise UnsupportedArchitecture(
            f"architecture {architecture} of model_type {config.model_type!r} has no backbone that transformers knows"
        )
    _check_refused(name)
    model_class = find_class(name)
    if model_class is None:
        raise UnsupportedArchitecture(f"transformers has no class {name}")
    if config.is_encoder_decoder and name not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"{name} is an encoder with a decoder, which answers no text by itself{_encoder_alone(name)}"
        )
    form = find_form(architecture)
    if form == "embedding" and architecture not in ("?", *ARCHITECTURES) and find_class(architecture) is None:
        override = json.dumps({"architectures": [name]})
        raise UnsupportedArchitecture(
            f"architecture {architecture} is no class of transformers, and what it computes beyond {name} is not known "
            f"here; if that is all it is, export with --hf-overrides '{override}'"
        )
    return Backbone(
        folder=folder,
        config=config,
        architecture=name if form == "embedding" else architecture,
        form=form,
        row=ARCHITECTURES.get(name) or _unlisted(name, config),
        model_class=model_class,
        layout=layout,
    )


def _encoder_alone(name: str) -> str:
    """Say which class of transformers is the encoder of a model that has a decoder too."""
    encoder = f"{name.removesuffix('Model')}EncoderModel"
    others = ", ".join(it for it in ARCHITECTURES if it.endswith("EncoderModel"))
    if encoder not in ARCHITECTURES:
        return f", and transformers has no class of its encoder alone that is known here; those known are {others}"
    override = json.dumps({"architectures": [encoder]})
    return f"; its encoder alone does: export with --hf-overrides '{override}'"


def _check_refused(name: str) -> None:
    if name in REFUSED_CLASSES:
        raise UnsupportedArchitecture(f"{name} is not supported: it {REFUSED_CLASSES[name]}")


def _check_floats(config: PretrainedConfig) -> None:
    """Refuse a checkpoint whose weights are not floats: its scales would be read by nothing."""
    settings = getattr(config, "quantization_config", None)
    if settings:
        method = settings.get("quant_method") if isinstance(settings, Mapping) else type(settings).__name__
        raise UnsupportedArchitecture(
            f"config.json has a quantization_config (quant_method {method!r}): export the checkpoint that it was made "
            "from, whose weights are floats; if these are, too, add --hf-overrides "
            """'{"quantization_config": null}'"""
        )


def find_form(architecture: str) -> Form:
    """Return what models of a class answer, by the class's name.

    Raises:
        UnsupportedArchitecture: a name that says nothing.
    """
    if architecture in LATE_INTERACTION_CLASSES or architecture.startswith(LATE_INTERACTION_PREFIX):
        return "late_interaction"
    if architecture == "?":
        return "embedding"
    for ending, form in FORMS:
        if architecture.endswith(ending):
            return form
    endings = ", ".join(f"...{ending}" for ending, _ in FORMS)
    raise UnsupportedArchitecture(f"architecture {architecture} is no pooling model; those are {endings}")


def load_config(
    folder: Path, options: Mapping[str, Any], *, trust_remote_code: bool
) -> tuple[PretrainedConfig, Layout | None]:
    """Read ``config.json`` of a backbone's folder, with some fields changed by ``options``, and its published layout.

    Raises:
        UnsupportedArchitecture: a model type that transformers does not know.
    """
    try:
        published = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **options}
        layout = find_layout(LAYOUTS, published)
        if layout is not None:
            translated = layout.translate(published)
            return AutoConfig.for_model(translated.pop("model_type"), **translated), layout
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    except PoolgraphError:
        raise
    except Exception as error:
        raise UnsupportedArchitecture(f"config.json of the checkpoint cannot be used: {error}") from error
    for name, value in options.items():  # from_pretrained leaves out the fields that its class does not declare
        setattr(config, name, value)
    return config, None


def find_class(name: str) -> type[PreTrainedModel] | None:
    """Return the transformers class called ``name``, or ours, None where there is none."""
    import transformers

    if name in OWN_CLASSES:
        return getattr(importlib.import_module(f"poolgraph.export.{OWN_CLASSES[name]}"), name)  # type: ignore[no-any-return]
    return getattr(transformers, name, None)


def class_for_task(config: PretrainedConfig, task: str) -> str | None:
    """Return the transformers class that optimum's TasksManager loads for a task, None where there is none."""
    from optimum.exporters.tasks import TasksManager

    auto = TasksManager.get_model_class_for_task(task, framework="pt", library="transformers")
    try:
        found = auto._model_mapping[type(config)]
    except KeyError:
        return None
    return str((found[0] if isinstance(found, tuple) else found).__name__)


def _unlisted(name: str, config: PretrainedConfig) -> Architecture:
    positions: PositionRule = "offset" if name in COUNTED_POSITIONS else "absolute"
    return Architecture(family="interface", pooling=_default_pooling(config), positions=positions)


def _default_pooling(config: PretrainedConfig) -> str:
    """Return LAST for models that generate text, CLS for the others: vLLM's defaults."""
    return "lasttoken" if class_for_task(config, "text-generation") and not _is_encoder(config) else "cls"


def _is_encoder(config: PretrainedConfig) -> bool:
    """Whether the backbone reads in both directions; encoders, too, have classes that generate (BertLMHeadModel)."""
    return class_for_task(config, "fill-mask") is not None
