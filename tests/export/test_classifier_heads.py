"""Layouts of classifier and reward heads, recognized by the names that transformers' own classes give their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_heads import TINY_BACKBONES
from transformers import DebertaV2Config, EuroBertConfig, PretrainedConfig, XLMRobertaXLConfig

from poolgraph.errors import ExportError
from poolgraph.export.classifier_heads import (
    GELU,
    IDENTITY,
    RELU,
    SEQUENCE_LAYOUTS,
    TANH,
    TOKEN_LAYOUTS,
    find_layout,
    plan_layout,
)
from poolgraph.export.head import HeadPlan, StoredTensor, build_head

FOLDER = Path("somewhere")


@dataclass(frozen=True)
class FakeWeights:
    """Names and shapes of a checkpoint's tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    folder: Path = FOLDER

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def stored_name(self, name: str) -> str:
        return name


def config_of(name: str, **changes: Any) -> PretrainedConfig:
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 40}
    more = {
        "DebertaV2Model": lambda: DebertaV2Config(**small),
        "XLMRobertaXLModel": lambda: XLMRobertaXLConfig(**small),
    }
    config = more[name]() if name in more else TINY_BACKBONES[name].config()
    for key, value in {"num_labels": 3, **changes}.items():
        setattr(config, key, value)
    return config


def weights_of(config: PretrainedConfig, cls: str) -> tuple[FakeWeights, str]:
    """Names and shapes of transformers' own class, and its backbone's prefix."""
    with torch.device("meta"):
        model = getattr(transformers, cls)(config)
    return FakeWeights({name: tuple(t.shape) for name, t in model.state_dict().items()}), model.base_model_prefix


def plan(layouts: Any, config: PretrainedConfig, cls: str) -> tuple[str, HeadPlan]:
    weights, prefix = weights_of(config, cls)
    layout = find_layout(layouts, weights, config, prefix)  # type: ignore[arg-type]
    name = next(key for key, value in layouts.items() if value is layout)
    return name, plan_layout(layout, weights, config, prefix)  # type: ignore[arg-type]


def outline(plan: HeadPlan) -> tuple[list, list]:
    """Each step as (kind, input width, output width, activation's class, tensors' names)."""
    return tuple(  # type: ignore[return-value]
        [
            (
                step.kind,
                step.input_size,
                step.output_size(step.input_size or 0),
                str(step.config.get("activation_function", "")).rpartition(".")[2],
                sorted(stored.name for stored in step.tensors.values()),
            )
            for step in steps
        ]
        for steps in (plan.pooled, plan.shared)
    )


def pair(name: str) -> list[str]:
    return [f"{name}.bias", f"{name}.weight"]


CLASSIFIER = ("Dense", 32, 3, "Identity", pair("classifier"))
ROBERTA = [
    ("Dense", 32, 32, "Tanh", pair("classifier.dense")),
    ("Dense", 32, 3, "Identity", pair("classifier.out_proj")),
]
SCORE = [("Dense", 32, 3, "Identity", ["score.weight"])]


@pytest.mark.parametrize(
    ("backbone", "cls", "layout", "pooling", "pooled", "shared"),
    [
        (
            "BertModel",
            "BertForSequenceClassification",
            "bert",
            "cls",
            [("Dense", 32, 32, "Tanh", pair("bert.pooler.dense"))],
            [CLASSIFIER],
        ),
        (
            "AlbertModel",
            "AlbertForSequenceClassification",
            "albert",
            "cls",
            [("Dense", 32, 32, "Tanh", pair("albert.pooler"))],
            [CLASSIFIER],
        ),
        (
            "DistilBertModel",
            "DistilBertForSequenceClassification",
            "distilbert",
            "cls",
            [("Dense", 32, 32, "ReLU", pair("pre_classifier"))],
            [CLASSIFIER],
        ),
        (
            "DebertaV2Model",
            "DebertaV2ForSequenceClassification",
            "deberta",
            "cls",
            [("Dense", 32, 32, "GELU", pair("pooler.dense"))],
            [CLASSIFIER],
        ),
        ("RobertaModel", "RobertaForSequenceClassification", "roberta", "cls", [], ROBERTA),
        ("RobertaModel", "CamembertForSequenceClassification", "roberta", "cls", [], ROBERTA),
        ("XLMRobertaModel", "XLMRobertaForSequenceClassification", "roberta", "cls", [], ROBERTA),
        ("XLMRobertaXLModel", "XLMRobertaXLForSequenceClassification", "roberta", "cls", [], ROBERTA),
        ("MPNetModel", "MPNetForSequenceClassification", "roberta", "cls", [], ROBERTA),
        (
            "ElectraModel",
            "ElectraForSequenceClassification",
            "electra",
            "cls",
            [],
            [("Dense", 32, 32, "GELU", pair("classifier.dense")), ROBERTA[1]],
        ),
        (
            "ModernBertModel",
            "ModernBertForSequenceClassification",
            "modernbert",
            "cls",
            [
                ("Dense", 32, 32, "GELU", ["head.dense.weight"]),
                ("LayerNorm", 32, 32, "", ["head.norm.weight"]),
            ],
            [CLASSIFIER],
        ),
        ("GPT2Model", "GPT2ForSequenceClassification", "score", "lasttoken", [], SCORE),
        ("Qwen2Model", "Qwen2ForSequenceClassification", "score", "lasttoken", [], SCORE),
        ("Qwen3Model", "Qwen3ForSequenceClassification", "score", "lasttoken", [], SCORE),
        ("LlamaModel", "LlamaForSequenceClassification", "score", "lasttoken", [], SCORE),
        ("MistralModel", "MistralForSequenceClassification", "score", "lasttoken", [], SCORE),
        ("GemmaModel", "GemmaForSequenceClassification", "score", "lasttoken", [], SCORE),
        ("Gemma2Model", "Gemma2ForSequenceClassification", "score", "lasttoken", [], SCORE),
    ],
)
def test_sequence_layouts(backbone: str, cls: str, layout: str, pooling: str, pooled: list, shared: list) -> None:
    if cls.startswith("Camembert"):
        config: PretrainedConfig = transformers.CamembertConfig(**config_of(backbone).to_dict())
    else:
        config = config_of(backbone)
    name, made = plan(SEQUENCE_LAYOUTS, config, cls)
    assert (name, made.kind, made.pooling) == (layout, "logits", (pooling,))
    assert outline(made) == (pooled, shared)
    assert (made.sequence_size(32), made.converted, made.column_token_ids) == (3, False, ())


@pytest.mark.parametrize(
    ("backbone", "cls", "layout", "shared"),
    [
        ("BertModel", "BertForTokenClassification", "classifier", [CLASSIFIER]),
        ("RobertaModel", "RobertaForTokenClassification", "classifier", [CLASSIFIER]),
        ("XLMRobertaModel", "XLMRobertaForTokenClassification", "classifier", [CLASSIFIER]),
        ("DistilBertModel", "DistilBertForTokenClassification", "classifier", [CLASSIFIER]),
        ("MPNetModel", "MPNetForTokenClassification", "classifier", [CLASSIFIER]),
        ("ElectraModel", "ElectraForTokenClassification", "classifier", [CLASSIFIER]),
        (
            "ModernBertModel",
            "ModernBertForTokenClassification",
            "modernbert",
            [
                ("Dense", 32, 32, "GELU", ["head.dense.weight"]),
                ("LayerNorm", 32, 32, "", ["head.norm.weight"]),
                CLASSIFIER,
            ],
        ),
        ("Qwen3Model", "Qwen3ForTokenClassification", "score", [("Dense", 32, 3, "Identity", pair("score"))]),
        ("GPT2Model", "GPT2ForTokenClassification", "classifier", [CLASSIFIER]),
    ],
)
def test_token_layouts(backbone: str, cls: str, layout: str, shared: list) -> None:
    name, made = plan(TOKEN_LAYOUTS, config_of(backbone), cls)
    assert (name, made.pooling) == (layout, None)
    assert outline(made) == ([], shared)


@pytest.mark.parametrize(
    ("tensors", "layout", "activations"),
    [
        ({"score.0": (32, 32), "score.2": (2, 32)}, "score_mlp", ["ReLU", "Identity"]),
        ({"score": (1, 32)}, "score", ["Identity"]),
        ({"v_head": (1, 32)}, "v_head", ["Identity"]),
    ],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_reward_heads_that_transformers_has_no_class_for(
    tensors: dict[str, tuple[int, int]], layout: str, activations: list[str], has_bias: bool
) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in tensors.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in tensors.items() if has_bias}
    weights: Any = FakeWeights({"model.norm.weight": (32,), **shapes})
    found = find_layout(TOKEN_LAYOUTS, weights, config_of("Qwen2Model"), "model")
    assert found is TOKEN_LAYOUTS[layout]
    made = plan_layout(found, weights, config_of("Qwen2Model"), "model")
    assert [line[3] for line in outline(made)[1]] == activations
    assert [step.config["bias"] for step in made.shared] == [has_bias] * len(activations)


# --- details


@pytest.mark.parametrize(("word", "mode"), [("cls", "cls"), ("mean", "mean")])
def test_modernbert_says_itself_how_it_pools(word: str, mode: str) -> None:
    config = config_of("ModernBertModel", classifier_pooling=word)
    _, made = plan(SEQUENCE_LAYOUTS, config, "ModernBertForSequenceClassification")
    assert made.pooling == (mode,)


def test_modernbert_that_pools_in_another_way() -> None:
    config = config_of("ModernBertModel")
    weights, prefix = weights_of(config, "ModernBertForSequenceClassification")
    config.__dict__["classifier_pooling"] = "sum"  # as the configuration of a class that does not check it
    with pytest.raises(ExportError, match=r"config\.json asks for the pooling 'sum'; known are \['avg', 'bos', 'cls'"):
        plan_layout(SEQUENCE_LAYOUTS["modernbert"], weights, config, prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "name"), [("gelu", GELU), ("relu", RELU), ("tanh", TANH)])
def test_activation_named_by_the_configuration(word: str, name: str) -> None:
    config = config_of("ModernBertModel", classifier_activation=word)
    _, made = plan(SEQUENCE_LAYOUTS, config, "ModernBertForSequenceClassification")
    assert made.pooled[0].config["activation_function"] == name
    assert made.shared[0].config["activation_function"] == IDENTITY


def test_activation_of_the_configuration_that_is_not_compiled() -> None:
    config = config_of("ModernBertModel", classifier_activation="gelu_10")
    with pytest.raises(ExportError, match=r"the activation 'gelu_10' in the head; those compiled are \['gelu', "):
        plan(SEQUENCE_LAYOUTS, config, "ModernBertForSequenceClassification")


def test_modernberts_norm_takes_its_epsilon_and_bias_from_the_checkpoint() -> None:
    config = config_of("ModernBertModel", norm_eps=0.25, norm_bias=True, classifier_bias=True)
    _, made = plan(SEQUENCE_LAYOUTS, config, "ModernBertForSequenceClassification")
    assert made.pooled[1].config == {"dimension": 32, "eps": 0.25, "bias": True}
    assert made.pooled[0].config["bias"] is True


def test_tensors_are_where_the_built_head_has_its_parameters() -> None:
    config = config_of("BertModel")
    _, made = plan(SEQUENCE_LAYOUTS, config, "BertForSequenceClassification")
    assert made.tensors() == {
        "head.pooled.0.linear.weight": StoredTensor(folder=FOLDER, name="bert.pooler.dense.weight"),
        "head.pooled.0.linear.bias": StoredTensor(folder=FOLDER, name="bert.pooler.dense.bias"),
        "head.chain.0.linear.weight": StoredTensor(folder=FOLDER, name="classifier.weight"),
        "head.chain.0.linear.bias": StoredTensor(folder=FOLDER, name="classifier.bias"),
    }
    assert {f"head.{name}" for name, _ in build_head(made).named_parameters()} == set(made.tensors())


def test_pooled_steps_need_not_fit_the_rows() -> None:
    """Whether there is a token family depends on what pooled vectors and rows share."""
    _, made = plan(SEQUENCE_LAYOUTS, config_of("BertModel"), "BertForSequenceClassification")
    assert made.takes_rows(32)
    assert not made.takes_rows(48)


def test_head_of_no_known_layout_lists_the_tensors_outside_the_backbone() -> None:
    weights: Any = FakeWeights({"bert.pooler.dense.weight": (32, 32), "top.weight": (3, 32), "cls.bias": (3,)})
    with pytest.raises(ExportError, match=r"outside the backbone, \['cls\.bias', 'top\.weight'\].*--convert embed"):
        find_layout(SEQUENCE_LAYOUTS, weights, config_of("BertModel"), "bert")


@pytest.mark.parametrize(("word", "layout", "rows"), [("late", "eurobert_late", 1), ("mean", "eurobert", 0)])
def test_eurobert_says_whether_its_layer_comes_before_pooling(word: str, layout: str, rows: int) -> None:
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 40, "pad_token_id": 0}
    config = EuroBertConfig(**small, classifier_pooling=word)
    name, found = plan(SEQUENCE_LAYOUTS, config, "EuroBertForSequenceClassification")
    assert (name, found.pooling, len(found.rows), len(found.pooled)) == (layout, ("mean",), rows, 1 - rows)
    assert found.takes_rows(32) is not bool(rows)
    assert not found.is_sparse
