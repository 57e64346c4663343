"""The head of a checkpoint: the caller's settings beat the files, which beat the architecture, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_heads import (
    STEP_TAG_ID,
    change_json,
    plan_of,
    save_model,
    save_reward_model,
    yes_no_vocabulary,
)
from tiny_models import HeadSpec, dense, save_checkpoint

from poolgraph.errors import ExportError, InputError, TaskNotSupported
from poolgraph.export.describe import build_manifest
from poolgraph.export.head import BUILDERS, HeadPlan
from poolgraph.export.resolve_head import STEP_TAGS
from poolgraph.graphs.manifest import Pooler

NORMALIZE = ("Normalize", {}, {})
MEAN, MAX = {"pooling_mode_mean_tokens": True}, {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Embedding models with and without sentence-transformers' files, classifiers, rewards, language models."""
    base = tmp_path_factory.mktemp("heads")

    def sentence(name: str, pooling: dict, *modules: Any) -> Path:
        return save_checkpoint(base / name, "BertModel", HeadSpec(pooling=pooling, modules=modules))

    made = {
        "encoder": save_model(base / "encoder", "BertModel", "BertModel"),
        "decoder": save_model(base / "decoder", "Qwen2Model", "Qwen2Model"),
        "mean normalize": sentence("mean", MEAN, NORMALIZE),
        "max": sentence("max", MAX),
        "dense normalize": sentence("dense", MEAN, dense(32, 12), NORMALIZE),
        "bert": save_model(base / "bert", "BertModel", "BertForSequenceClassification", num_labels=3),
        "modernbert": save_model(
            base / "modernbert", "ModernBertModel", "ModernBertForSequenceClassification", classifier_pooling="mean"
        ),
        "score": save_model(base / "score", "GPT2Model", "GPT2ForSequenceClassification", num_labels=3),
        "tokens": save_model(base / "tokens", "BertModel", "BertForTokenClassification", num_labels=3),
        "reward": save_reward_model(base / "reward", "Qwen2ForRewardModel", 1),
        "steps": save_reward_model(base / "steps", "Qwen2ForProcessRewardModel", 2),
        "causal": save_model(base / "causal", "LlamaModel", "LlamaForCausalLM"),
        "capped": save_model(base / "capped", "Gemma2Model", "Gemma2ForCausalLM"),
    }
    score = save_model(base / "causal score", "LlamaModel", "LlamaForSequenceClassification", num_labels=1)
    change_json(score / "config.json", architectures=["LlamaForCausalLM"])
    return {**made, "causal score": score}


def pooler_of(folder: Path, **options: Any) -> Pooler:
    """What the manifest says of the pooler."""
    return build_manifest(plan_of(folder, **options), [], min_cosine=None).pooler


# --- pooling


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("encoder", ("cls",)),
        ("decoder", ("lasttoken",)),
        ("causal", ("lasttoken",)),
        ("mean normalize", ("mean",)),
        ("max", ("max",)),
        ("bert", ("cls",)),
        ("modernbert", ("mean",)),
        ("score", ("lasttoken",)),
    ],
)
@pytest.mark.parametrize(
    ("asked", "overridden"), [(None, None), ("CLS", ("cls",)), ("LAST", ("lasttoken",)), ("MEAN", ("mean",))]
)
@pytest.mark.parametrize("field", ["pooling_type", "seq_pooling_type"])
def test_pooling_type(
    folders: Mapping[str, Path],
    name: str,
    pooling: tuple[str, ...],
    asked: str | None,
    overridden: tuple[str, ...] | None,
    field: str,
) -> None:
    found = pooler_of(folders[name], pooler_config={field: asked})
    assert found.pooling == (overridden or pooling)


def test_pooling_alone_is_changed(folders: Mapping[str, Path]) -> None:
    plain = plan_of(folders["dense normalize"]).head
    changed = plan_of(folders["dense normalize"], pooler_config={"pooling_type": "CLS"}).head
    assert (changed.shared, changed.normalize, changed.pooled) == (plain.shared, True, ())
    plain, changed = (
        plan_of(folders["bert"], pooler_config=config).head for config in (None, {"pooling_type": "MEAN"})
    )
    assert (changed.pooled, changed.shared, changed.activation) == (plain.pooled, plain.shared, plain.activation)


@pytest.mark.parametrize("name", ["tokens", "reward", "steps"])
def test_pooling_of_a_head_that_pools_nothing(folders: Mapping[str, Path], name: str) -> None:
    with pytest.raises(InputError, match="pooling mean was asked for, but this checkpoint answers token by token"):
        plan_of(folders[name], pooler_config={"seq_pooling_type": "MEAN"})


# --- use_activation


@pytest.mark.parametrize(
    ("name", "asked", "normalize"),
    [
        ("encoder", None, True),
        ("encoder", True, True),
        ("encoder", False, False),
        ("decoder", None, True),
        ("decoder", False, False),
        ("mean normalize", None, True),
        ("mean normalize", True, True),
        ("mean normalize", False, False),
        ("max", None, False),
        ("max", True, True),
        ("max", False, False),
        ("dense normalize", None, True),
        ("dense normalize", False, False),
    ],
)
def test_activation_of_embeddings_is_their_normalization(
    folders: Mapping[str, Path], name: str, asked: bool | None, normalize: bool
) -> None:
    for spelling in ("use_activation", "normalize"):
        found = plan_of(folders[name], pooler_config={spelling: asked}).head
        assert found.normalize is normalize
        assert [step.kind for step in found.shared if step.kind != "Normalize"] == (
            ["Dense"] if name.startswith("dense") else []
        )
        assert (found.kind, found.activation) == ("embedding", None)


@pytest.mark.parametrize(
    ("name", "asked", "used"),
    [
        ("bert", None, True),
        ("bert", True, True),
        ("bert", False, False),
        ("tokens", None, True),
        ("tokens", False, False),
        ("reward", None, False),
        ("reward", True, True),
        ("reward", False, False),
        ("steps", None, True),
        ("steps", False, False),
    ],
)
def test_activation_of_logits(folders: Mapping[str, Path], name: str, asked: bool | None, used: bool) -> None:
    for spelling in ("use_activation", "softmax", "activation"):
        found = pooler_of(folders[name], pooler_config={spelling: asked})
        assert (found.use_activation, found.activation, found.normalize) == (used, "auto", False)


@pytest.mark.parametrize(
    ("problem", "activation"),
    [
        ("regression", "identity"),
        ("single_label_classification", "auto"),
        ("multi_label_classification", "sigmoid"),
        (None, "auto"),
    ],
)
def test_problem_type_names_the_activation(folders: Mapping[str, Path], problem: str | None, activation: str) -> None:
    assert plan_of(folders["bert"], hf_overrides={"problem_type": problem}).head.activation == activation


# --- mean and sigma


@pytest.mark.parametrize("name", ["bert", "score", "tokens", "reward", "steps"])
@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 2.0), (0.5, None), (None, 0.25), (0.0, None)])
def test_mean_and_sigma_are_the_last_step_of_logits(
    folders: Mapping[str, Path], name: str, mean: float | None, sigma: float | None
) -> None:
    config = {"logit_mean": mean, "logit_sigma": sigma}
    plain, found = plan_of(folders[name]).head, plan_of(folders[name], pooler_config=config).head
    assert found.shared[:-1] == plain.shared
    assert (found.shared[-1].kind, dict(found.shared[-1].config)) == ("Standardize", {"mean": mean, "sigma": sigma})
    pooler = pooler_of(folders[name], pooler_config=config)
    assert (pooler.logit_mean, pooler.logit_sigma) == (mean, sigma)
    assert pooler_of(folders[name]).embedding_size == pooler.embedding_size


@pytest.mark.parametrize("config", [{"logit_mean": 0.5}, {"logit_sigma": 2.0}])
@pytest.mark.parametrize("name", ["encoder", "mean normalize", "causal"])
def test_embeddings_have_no_mean_and_sigma(folders: Mapping[str, Path], name: str, config: dict) -> None:
    with pytest.raises(InputError, match="logit_mean and logit_sigma have no meaning for embeddings"):
        plan_of(folders[name], pooler_config=config)


# --- steps


@pytest.mark.parametrize(
    ("name", "config", "kind", "tag"),
    [
        ("steps", {}, "STEP", STEP_TAGS["Qwen2ForProcessRewardModel"]),
        ("steps", {"step_tag_id": 7}, "STEP", 7),
        ("steps", {"step_tag_id": 0}, "STEP", 0),
        ("steps", {"tok_pooling_type": "ALL"}, "ALL", STEP_TAGS["Qwen2ForProcessRewardModel"]),
        ("reward", {}, "ALL", None),
        ("reward", {"pooling_type": "STEP", "step_tag_id": 7}, "STEP", 7),
        ("tokens", {}, "ALL", None),
        ("bert", {}, "ALL", None),
        ("bert", {"pooling_type": "STEP", "step_tag_id": 3}, "STEP", 3),
        ("causal", {"pooling_type": "STEP", "step_tag_id": 7, "returned_token_ids": [9, 4]}, "STEP", 7),
        ("causal", {"pooling_type": "STEP", "returned_token_ids": [9, 4]}, "STEP", None),
    ],
)
def test_steps(folders: Mapping[str, Path], name: str, config: dict, kind: str, tag: int | None) -> None:
    found = pooler_of(folders[name], pooler_config=config)
    assert (found.tok_pooling_type, found.step_tag_id) == (kind, tag)
    assert found.returned_token_ids == tuple(config.get("returned_token_ids", ()))


def test_step_tag_of_the_tests_is_another_than_the_default() -> None:
    assert STEP_TAG_ID not in STEP_TAGS.values()


def test_columns_of_a_language_model_are_vocabulary_ids(folders: Mapping[str, Path]) -> None:
    config = {"pooling_type": "STEP", "step_tag_id": 7, "returned_token_ids": [9, 4]}
    found = pooler_of(folders["causal"], pooler_config=config)
    assert (found.column_token_ids, found.pooling, found.embedding_size, found.activation) == ((9, 4), (), 2, "auto")
    assert pooler_of(folders["steps"], pooler_config={"returned_token_ids": [1]}).column_token_ids == ()


def test_language_model_whose_reward_tokens_are_not_named(folders: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM has no reward head: name the tokens") as caught:
        plan_of(folders["causal"], pooler_config={"pooling_type": "STEP", "step_tag_id": 7})
    assert caught.value.parameter == "returned_token_ids"


def test_reward_tokens_out_of_vocabulary(folders: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match=r"token ids \[99999\] are out of vocabulary"):
        plan_of(folders["causal"], pooler_config={"pooling_type": "STEP", "returned_token_ids": [4, 99999]})


# --- language models


FALSE, TRUE = yes_no_vocabulary()


@pytest.mark.parametrize(
    ("overrides", "rows", "difference", "size"),
    [
        ({"classifier_from_token": [TRUE]}, [TRUE], False, 1),
        ({"classifier_from_token": [FALSE, TRUE]}, [FALSE, TRUE], False, 2),
        ({"classifier_from_token": [FALSE, TRUE], "method": "no_post_processing"}, [FALSE, TRUE], False, 2),
        ({"classifier_from_token": [FALSE, TRUE], "method": "from_2_way_softmax"}, [FALSE, TRUE], True, 1),
        ({"classifier_from_token": [FALSE, TRUE], "is_original_qwen3_reranker": True}, [FALSE, TRUE], True, 1),
        ({"classifier_from_token": [TRUE, FALSE], "method": "from_2_way_softmax"}, [TRUE, FALSE], True, 1),
    ],
)
def test_tokens_that_classify(
    folders: Mapping[str, Path], overrides: dict, rows: list[str], difference: bool, size: int
) -> None:
    made = plan_of(folders["causal"], hf_overrides=overrides, score_template="plain")
    vocabulary = made.tokenizer.get_vocab()
    (step,) = made.head.shared
    assert {(stored.name, stored.rows, stored.difference) for stored in step.tensors.values()} == {
        ("lm_head.weight", tuple(vocabulary[row] for row in rows), difference)
    }
    assert (made.sequence_size, made.token_size, made.head.pooling) == (size, size, ("lasttoken",))
    assert (made.head.converted, made.head.activation, made.labels) == (True, "auto", ())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"classifier_from_token": ["no such token"]}, r"names \['no such token'\], which the tokenizer does not have"),
        ({"classifier_from_token": [TRUE], "method": "from_2_way_softmax"}, "takes two tokens, false and true, not 1"),
        ({"classifier_from_token": [TRUE], "method": "softmax"}, "method 'softmax' is unknown; choose one of"),
    ],
)
def test_tokens_that_cannot_classify(folders: Mapping[str, Path], overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(folders["causal"], hf_overrides=overrides, score_template="plain")


def test_language_model_that_bends_its_logits(folders: Mapping[str, Path]) -> None:
    with pytest.raises(ExportError, match="final_logit_softcapping"):
        plan_of(folders["capped"], hf_overrides={"classifier_from_token": [TRUE]}, score_template="plain")
    assert plan_of(folders["capped"]).tasks == ("embed", "token_embed")


def test_language_model_that_came_with_a_score(folders: Mapping[str, Path]) -> None:
    made = plan_of(folders["causal score"])
    assert (made.tasks, made.head.pooling, made.head.converted) == (
        ("classify", "token_classify"),
        ("lasttoken",),
        False,
    )
    assert [stored.name for stored in made.head.tensors().values()] == ["score.weight"]


def test_language_model_without_a_classifier_says_how_to_name_one(folders: Mapping[str, Path]) -> None:
    with pytest.raises(TaskNotSupported) as caught:
        plan_of(folders["causal"], task="classify")
    for cure in ('"classifier_from_token": ["no", "yes"]', '"pooling_type": "STEP"', '"returned_token_ids"'):
        assert cure in str(caught.value)


# --- embeddings of classifiers


@pytest.mark.parametrize("name", ["bert", "modernbert", "score", "tokens", "reward", "steps", "causal score"])
def test_embedding_drops_the_head(folders: Mapping[str, Path], name: str) -> None:
    for options in ({"task": "embed"}, {"convert": "embed"}):
        found: HeadPlan = plan_of(folders[name], **options).head
        assert (found.kind, found.pooled, found.tensors(), found.normalize) == ("embedding", (), {}, True)


def test_a_dense_module_whose_activation_halves_its_width_is_refused() -> None:
    config = {"in_features": 4, "out_features": 4, "activation_function": "torch.nn.modules.activation.GLU"}
    with pytest.raises(ExportError, match="GLU of a Dense module halves its width"):
        BUILDERS["Dense"](config)


@pytest.mark.parametrize("name", ["Linear", "Conv1d"])
def test_a_dense_module_whose_activation_needs_arguments_is_refused(name: str) -> None:
    config = {"in_features": 4, "out_features": 4, "activation_function": f"torch.nn.{name}"}
    with pytest.raises(ExportError, match=f"activation function 'torch.nn.{name}' cannot be made without arguments"):
        BUILDERS["Dense"](config)
