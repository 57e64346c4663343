"""Heads of masked language models, by which SPLADE makes weights of a vocabulary's words of a text's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from transformers import PretrainedConfig

from poolgraph.errors import ExportError
from poolgraph.export.classifier_heads import GELU, IDENTITY, Layer, fits_layer, plan_layers
from poolgraph.export.head import HeadPlan, HeadStep, StoredTensor
from poolgraph.export.layouts import Weights
from poolgraph.export.sparse_encoder import Splade

SATURATIONS: Mapping[str, int] = MappingProxyType({"relu": 1, "log1p_relu": 2})
"""How often the logarithm is taken, by sentence-transformers' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLanguageHead:
    """How one family of checkpoints lays out the head.

    Attributes:
        layers: What a row passes before it is multiplied with the vocabulary.
        decoder: Name of the last layer without ``.weight``, which is left out where it is tied.
        biases: Names that its bias has. The decoder's own comes first: where the two differ transformers adds it alone.
        needs: Fields that the configuration must have, with their values: what tensors' names do not tell.
    """

    layers: tuple[Layer, ...]
    decoder: str
    biases: tuple[str, ...]
    needs: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def fits(self, weights: Weights, config: PretrainedConfig, base_prefix: str) -> bool:
        """Whether a checkpoint has it."""
        needed = all(getattr(config, name, None) == value for name, value in self.needs.items())
        return needed and all(fits_layer(layer, weights, base_prefix) for layer in self.layers)


LAYOUTS: Mapping[str, MaskedLanguageHead] = MappingProxyType(
    {
        "bert": MaskedLanguageHead(
            layers=(
                Layer("cls.predictions.transform.dense", "config:hidden_act"),
                Layer("cls.predictions.transform.LayerNorm", is_norm=True),
            ),
            decoder="cls.predictions.decoder",
            biases=("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
        "roberta": MaskedLanguageHead(
            layers=(Layer("lm_head.dense", GELU), Layer("lm_head.layer_norm", is_norm=True)),
            decoder="lm_head.decoder",
            biases=("lm_head.decoder.bias", "lm_head.bias"),
        ),
        "distilbert": MaskedLanguageHead(
            layers=(Layer("vocab_transform", "config:activation"), Layer("vocab_layer_norm", is_norm=True)),
            decoder="vocab_projector",
            biases=("vocab_projector.bias",),
        ),
        "modernbert": MaskedLanguageHead(
            layers=(Layer("head.dense", "config:classifier_activation"), Layer("head.norm", is_norm=True)),
            decoder="decoder",
            biases=("decoder.bias",),
        ),
        "albert": MaskedLanguageHead(
            layers=(Layer("predictions.dense", "config:hidden_act"), Layer("predictions.LayerNorm", is_norm=True)),
            decoder="predictions.decoder",
            biases=("predictions.decoder.bias", "predictions.bias"),
        ),
        "electra": MaskedLanguageHead(
            layers=(Layer("generator_predictions.dense", GELU), Layer("generator_predictions.LayerNorm", is_norm=True)),
            decoder="generator_lm_head",
            biases=("generator_lm_head.bias",),
        ),
        "rembert": MaskedLanguageHead(
            layers=(
                Layer("cls.predictions.dense", "config:hidden_act"),
                Layer("cls.predictions.LayerNorm", is_norm=True),
            ),
            decoder="cls.predictions.decoder",
            biases=("cls.predictions.decoder.bias",),
        ),
        "nomic_bert": MaskedLanguageHead(
            layers=(
                Layer("cls.predictions.transform.dense", "config:hidden_act"),
                Layer("cls.predictions.transform.layer_norm", is_norm=True),
            ),
            decoder="cls.predictions.decoder",
            biases=("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
        "deberta": MaskedLanguageHead(
            layers=(
                Layer("lm_predictions.lm_head.dense", "config:hidden_act"),
                Layer("lm_predictions.lm_head.LayerNorm", is_norm=True),
            ),
            decoder="lm_predictions.lm_head.decoder",
            biases=("lm_predictions.lm_head.bias",),
            needs=MappingProxyType({"legacy": False}),
        ),
        "eurobert": MaskedLanguageHead(
            layers=(),
            decoder="lm_head",
            biases=("lm_head.bias",),
            needs=MappingProxyType({"model_type": "eurobert"}),
        ),
    }
)
"""The first whose layers a checkpoint has is taken; MPNet, CamemBERT and XLM-RoBERTa are laid out as RoBERTa. DeBERTa
has its own only where ``legacy`` is false, and BERT's elsewhere: transformers reads no other."""

TABLES = ("embeddings.word_embeddings", "embeddings.tok_embeddings", "embed_tokens")
"""Names of the token embeddings, to which the last layer is tied unless the configuration says otherwise."""


def plan_splade(weights: Weights, config: PretrainedConfig, base_prefix: str, splade: Splade) -> HeadPlan:
    """Plan embeddings of a weight a word: the head's scores of each token, saturated, pooled over a text's tokens.

    A maximum is taken before the saturation, which grows with what it is given, so that it is computed of one row.

    Args:
        weights: The checkpoint's tensors.
        config: Its configuration.
        base_prefix: The backbone's prefix.
        splade: How a text's tokens are pooled.

    Raises:
        ExportError: the checkpoint has no masked language model's head that is known.
    """
    scores = _plan_scores(weights, config, base_prefix)
    saturation = HeadStep(kind="LogSaturation", config={"times": SATURATIONS[splade.activation]})
    if splade.strategy == "max":
        return HeadPlan(kind="embedding", pooling=("max",), rows=scores, shared=(saturation,))
    return HeadPlan(kind="embedding", pooling=("sum",), rows=(*scores, saturation))


def _plan_scores(weights: Weights, config: PretrainedConfig, base_prefix: str) -> tuple[HeadStep, ...]:
    for layout in LAYOUTS.values():
        if layout.fits(weights, config, base_prefix):
            layers = plan_layers(layout.layers, weights, config, base_prefix)
            return (*layers, _plan_decoder(layout, weights, config, base_prefix))
    outside = sorted(name for name in weights.names if not name.startswith(f"{base_prefix}."))
    raise ExportError(
        f"SPLADE needs the head of a masked language model. This {config.model_type} checkpoint has none that is laid "
        f"out as {list(LAYOUTS)}, which are compiled; its tensors outside the backbone are {outside[:20]}"
    )


def _plan_decoder(layout: MaskedLanguageHead, weights: Weights, config: PretrainedConfig, base_prefix: str) -> HeadStep:
    tables = TABLES if getattr(config, "tie_word_embeddings", True) else ()
    names = (layout.decoder, *(f"{prefix}{table}" for table in tables for prefix in (f"{base_prefix}.", "")))
    name = next((name for name in names if f"{name}.weight" in weights.names), None)
    if name is None:
        raise ExportError(f"the head of the masked language model has no matrix; looked for {list(names)}")
    vocab_size, in_features = weights.shape(f"{name}.weight")
    bias = next((name for name in layout.biases if name in weights.names), None)
    stored = {"linear.weight": f"{name}.weight"} | ({} if bias is None else {"linear.bias": bias})
    return HeadStep(
        kind="Dense",
        config={
            "in_features": in_features,
            "out_features": vocab_size,
            "bias": bias is not None,
            "activation_function": IDENTITY,
        },
        tensors={
            parameter: StoredTensor(folder=weights.folder, name=weights.stored_name(tensor))
            for parameter, tensor in stored.items()
        },
    )
