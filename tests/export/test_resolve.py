"""Resolution: what a checkpoint and its options come to, and what is refused with what is offered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_heads import plan_of, save_model, save_reward_model
from tiny_models import HeadSpec, bert_tokenizer, save_checkpoint, save_head
from transformers import (
    BertConfig,
    DistilBertConfig,
    ErnieConfig,
    MPNetConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
)

from poolgraph.errors import ExportError, InputError, TaskNotSupported, UnsupportedArchitecture
from poolgraph.export.architectures import ARCHITECTURES
from poolgraph.export.backbone import find_class
from poolgraph.export.resolve import ExportPlan, resolve_limits

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return bert_tokenizer()


def write(folder: Path, config: Any, *architectures: str, modules: bool = False, **files: Any) -> Path:
    """Write a checkpoint without weights: embedding models are resolved by their files alone."""
    config.architectures = list(architectures) or None
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    contents = {**({"modules.json": MODULES} if modules else {}), **files}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


# --- tasks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One checkpoint of each form."""
    base = tmp_path_factory.mktemp("forms")
    return {
        "embedder": save_model(base / "embedder", "BertModel", "BertModel"),
        "sentence": save_checkpoint(base / "sentence", "BertModel"),
        "one label": save_model(base / "one", "BertModel", "BertForSequenceClassification", num_labels=1),
        "three labels": save_model(base / "three", "BertModel", "BertForSequenceClassification", num_labels=3),
        "tokens": save_model(base / "tokens", "BertModel", "BertForTokenClassification", num_labels=3),
        "causal": save_model(base / "causal", "LlamaModel", "LlamaForCausalLM"),
        "causal score": save_model(base / "score", "GPT2Model", "GPT2ForSequenceClassification", num_labels=1),
        "reward": save_reward_model(base / "reward", "Qwen2ForRewardModel", 1),
        "steps": save_reward_model(base / "steps", "Qwen2ForProcessRewardModel", 2),
    }


EMBED, CLASSIFY, TOKENS = ("embed", "token_embed"), ("classify", "token_classify"), ("token_classify",)


@pytest.mark.parametrize(
    ("form", "options", "tasks", "default", "scoring"),
    [
        ("embedder", {}, EMBED, "embed", "bi_encoder"),
        ("embedder", {"task": "embed"}, EMBED, "embed", "bi_encoder"),
        ("embedder", {"task": "token_embed"}, EMBED, "token_embed", "bi_encoder"),
        ("embedder", {"task": "score"}, EMBED, "embed", "bi_encoder"),
        ("embedder", {"convert": "embed", "runner": "pooling"}, EMBED, "embed", "bi_encoder"),
        ("embedder", {"convert": "none"}, EMBED, "embed", "bi_encoder"),
        ("embedder", {"pooler_config": {"task": "token_embed"}}, EMBED, "token_embed", "bi_encoder"),
        ("sentence", {}, EMBED, "embed", "bi_encoder"),
        ("one label", {}, CLASSIFY, "classify", "cross_encoder"),
        ("one label", {"task": "classify"}, CLASSIFY, "classify", "cross_encoder"),
        ("one label", {"task": "score"}, CLASSIFY, "classify", "cross_encoder"),
        ("one label", {"task": "reward"}, CLASSIFY, "classify", "cross_encoder"),
        ("one label", {"task": "token_classify"}, CLASSIFY, "token_classify", "cross_encoder"),
        ("one label", {"task": "token_classify", "convert": "classify"}, CLASSIFY, "token_classify", "cross_encoder"),
        (
            "one label",
            {"task": "classify", "pooler_config": {"task": "token_classify"}},
            CLASSIFY,
            "token_classify",
            "cross_encoder",
        ),
        ("one label", {"task": "embed"}, EMBED, "embed", "bi_encoder"),
        ("one label", {"task": "token_embed"}, EMBED, "token_embed", "bi_encoder"),
        ("one label", {"convert": "embed"}, EMBED, "embed", "bi_encoder"),
        ("three labels", {}, CLASSIFY, "classify", None),
        ("three labels", {"convert": "classify"}, CLASSIFY, "classify", None),
        ("three labels", {"task": "score", "convert": "embed"}, EMBED, "embed", "bi_encoder"),
        ("tokens", {}, TOKENS, "token_classify", None),
        ("tokens", {"task": "token_classify"}, TOKENS, "token_classify", None),
        ("tokens", {"task": "reward"}, TOKENS, "token_classify", None),
        ("tokens", {"task": "embed"}, EMBED, "embed", "bi_encoder"),
        ("causal", {}, EMBED, "embed", "bi_encoder"),
        ("causal", {"task": "token_embed"}, EMBED, "token_embed", "bi_encoder"),
        (
            "causal",
            {"task": "reward", "pooler_config": {"pooling_type": "STEP", "returned_token_ids": [7, 3]}},
            TOKENS,
            "token_classify",
            None,
        ),
        ("causal score", {}, CLASSIFY, "classify", None),
        ("causal score", {"task": "score", "score_template": "plain"}, CLASSIFY, "classify", "cross_encoder"),
        ("causal score", {"task": "embed"}, EMBED, "embed", "bi_encoder"),
        ("reward", {}, TOKENS, "token_classify", None),
        ("reward", {"task": "reward"}, TOKENS, "token_classify", None),
        ("steps", {}, TOKENS, "token_classify", None),
        ("steps", {"task": "token_classify"}, TOKENS, "token_classify", None),
        ("steps", {"task": "embed"}, EMBED, "embed", "bi_encoder"),
    ],
)
def test_what_is_made(
    folders: Mapping[str, Path],
    form: str,
    options: dict[str, Any],
    tasks: tuple[str, ...],
    default: str,
    scoring: str | None,
) -> None:
    made = plan_of(folders[form], **options)
    assert (made.tasks, made.default_task) == (tasks, default)
    assert (made.scoring.kind if made.scoring else None) == scoring
    assert made.head.kind == ("embedding" if tasks is EMBED else "logits")


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("embedder", {"task": "classify"}, "BertModel embeds and its checkpoint has no classifier"),
        ("embedder", {"task": "token_classify"}, "BertModel embeds and its checkpoint has no classifier"),
        ("embedder", {"task": "reward"}, "BertModel embeds and its checkpoint has no classifier"),
        ("embedder", {"convert": "classify"}, "BertModel embeds and its checkpoint has no classifier"),
        ("sentence", {"task": "classify"}, "BertModel embeds and its checkpoint has no classifier"),
        ("three labels", {"task": "score"}, "cannot score: .* answers classify, token_classify; it has 3 labels"),
        ("tokens", {"task": "classify"}, "BertForTokenClassification cannot classify: .* it answers token_classify$"),
        ("tokens", {"task": "score"}, "BertForTokenClassification cannot score: .* it answers token_classify$"),
        ("tokens", {"pooler_config": {"task": "classify"}}, "cannot classify: .* it answers token_classify$"),
        ("embedder", {"pooler_config": {"task": "classify"}}, "cannot classify: .* it answers embed, token_embed$"),
        ("causal", {"task": "classify"}, "LlamaForCausalLM generates text and has no classifier: name the tokens"),
        ("causal", {"task": "score"}, "LlamaForCausalLM generates text and has no classifier: name the tokens"),
        ("causal", {"task": "reward"}, "LlamaForCausalLM generates text and has no classifier: name the tokens"),
        ("causal", {"convert": "classify"}, "LlamaForCausalLM generates text and has no classifier: name the tokens"),
        ("causal score", {"task": "score"}, "--score-template with a file or one of .*plain"),
        ("steps", {"task": "classify"}, "Qwen2ForProcessRewardModel cannot classify: .* it answers token_classify$"),
    ],
)
def test_what_a_checkpoint_cannot_do(
    folders: Mapping[str, Path], form: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskNotSupported, match=message):
        plan_of(folders[form], **options)


@pytest.mark.parametrize(
    ("task", "convert"),
    [
        ("embed", "classify"),
        ("token_embed", "classify"),
        ("classify", "embed"),
        ("token_classify", "embed"),
        ("reward", "embed"),
    ],
)
def test_task_and_conversion_that_contradict_each_other(folders: Mapping[str, Path], task: str, convert: str) -> None:
    with pytest.raises(InputError, match=f"--task {task} and --convert {convert} contradict each other"):
        plan_of(folders["one label"], task=task, convert=convert)


# --- labels


@pytest.mark.parametrize(
    ("form", "options", "labels"),
    [
        ("embedder", {}, ()),
        ("one label", {}, ("LABEL_0",)),
        ("three labels", {}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ("three labels", {"task": "embed"}, ()),
        ("three labels", {"hf_overrides": {"id2label": {"0": "no", "2": "yes", "1": "maybe"}}}, ("no", "maybe", "yes")),
        ("three labels", {"hf_overrides": {"id2label": {"0": "no", "1": "yes"}}}, ()),
        ("three labels", {"hf_overrides": {"id2label": {"1": "a", "2": "b", "3": "c"}}}, ()),
        ("tokens", {}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        (
            "causal",
            {"task": "reward", "pooler_config": {"pooling_type": "STEP", "returned_token_ids": [7, 3]}},
            (),
        ),
    ],
)
def test_labels(folders: Mapping[str, Path], form: str, options: dict[str, Any], labels: tuple[str, ...]) -> None:
    assert plan_of(folders[form], **options).labels == labels


# --- architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_name_classes_of_transformers_and_modules_of_ours(name: str, tmp_path: Path) -> None:
    model_class = find_class(name)
    assert model_class is not None
    config = model_class.config_class(hidden_size=384)
    made = plan_of(write(tmp_path, config, name))
    assert (made.backbone.architecture, made.backbone.row) == (name, ARCHITECTURES[name])
    assert made.model_class.__name__ == name
    assert callable(made.family.build_backbone)
    assert made.hidden_size == 384


@pytest.mark.parametrize("task", ["auto", "embed"])
@pytest.mark.parametrize("modules", [True, False])
def test_masked_language_model_is_taken_as_its_backbone(tmp_path: Path, task: str, modules: bool) -> None:
    made = plan_of(write(tmp_path, MPNetConfig(), "MPNetForMaskedLM", modules=modules), task=task)
    backbone = made.backbone
    assert (backbone.architecture, backbone.row.family, made.model_class.__name__) == (
        "MPNetModel",
        "mpnet",
        "MPNetModel",
    )
    assert made.head.pooling == (("mean",) if modules else ("cls",))


def test_checkpoint_without_architectures_is_taken_as_the_backbone_of_its_type(tmp_path: Path) -> None:
    assert plan_of(write(tmp_path, BertConfig())).backbone.architecture == "BertModel"


@pytest.mark.parametrize("form", ["one label", "tokens"])
def test_classifier_whose_embeddings_are_asked_for_is_its_backbone(folders: Mapping[str, Path], form: str) -> None:
    made = plan_of(folders[form], task="embed")
    assert (made.model_class.__name__, made.head.pooling, made.head.normalize) == ("BertModel", ("cls",), True)


def test_class_without_a_row(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, ErnieConfig(), "ErnieModel"))
    assert (made.backbone.architecture, made.backbone.row.family) == ("ErnieModel", "interface")
    assert made.head.pooling == ("cls",)


@pytest.mark.parametrize("name", ["ElectraModel", "AlbertModel"])
def test_classifier_has_the_class_of_its_backbone(tmp_path: Path, name: str) -> None:
    cls = name.replace("Model", "ForSequenceClassification")
    made = plan_of(save_model(tmp_path, name, cls, num_labels=3))
    assert (made.backbone.architecture, made.model_class.__name__, made.tasks) == (cls, name, CLASSIFY)


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "BertForMultipleChoice", "T5ForConditionalGeneration"])
def test_class_that_is_no_pooling_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=rf"{name} is no pooling model; those are \.\.\.ForSequenceCl"):
        plan_of(write(tmp_path, BertConfig(), name))


def test_model_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "from_next_year", "architectures": ["NextYearModel"]}')
    with pytest.raises(UnsupportedArchitecture, match="from_next_year"):
        plan_of(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_config_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ExportError, match=r"config\.json"):
        plan_of(tmp_path)


def test_remote_code_does_not_run_unless_it_is_allowed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "own.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    with pytest.raises(UnsupportedArchitecture):
        plan_of(tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("config", "name", "size"),
    [(DistilBertConfig(dim=24, n_heads=4), "DistilBertModel", 24), (BertConfig(hidden_size=48), "BertModel", 48)],
)
def test_hidden_size_by_any_name(tmp_path: Path, config: Any, name: str, size: int) -> None:
    assert plan_of(write(tmp_path, config, name)).hidden_size == size


def test_overrides_change_the_configuration_before_anything_is_decided(tmp_path: Path) -> None:
    folder = write(tmp_path, BertConfig(hidden_size=48), "BertForQuestionAnswering")
    made = plan_of(folder, hf_overrides={"architectures": ["BertModel"], "hidden_size": 24, "is_matryoshka": True})
    assert (made.backbone.architecture, made.hidden_size, made.config.is_matryoshka) == ("BertModel", 24, True)


def test_task_instructions_of_the_configuration_are_prompts(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, BertConfig(task_instructions={"query": "find: "})))
    assert made.sentence_transformer.prompts == {"query": "find: "}


# --- limits


def limit(made: ExportPlan, model_max_length: Any, max_seq_length: int | None = None) -> int:
    made = replace(
        made,
        sentence_transformer=replace(made.sentence_transformer, max_seq_length=max_seq_length),
        tokenizer=SimpleNamespace(model_max_length=model_max_length),  # type: ignore[arg-type]
    )
    return resolve_limits(made).max_model_len


HUGE = int(1e30)
"""What transformers writes where a tokenizer knows no limit."""


def test_the_roberta_family_loses_positions_to_its_padding(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, RobertaConfig(max_position_embeddings=514, pad_token_id=1), "RobertaModel"))
    assert limit(made, HUGE) == 512
    assert limit(made, 514) == 512
    assert limit(made, 128) == 128


def test_mpnet_too(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, MPNetConfig(max_position_embeddings=514, pad_token_id=1), "MPNetModel"))
    assert limit(made, HUGE) == 512


def test_max_seq_length_replaces_the_tokenizers_limit(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, BertConfig(max_position_embeddings=512, vocab_size=77), "BertModel"))
    assert limit(made, 128) == 128
    assert limit(made, 128, max_seq_length=256) == 256
    assert limit(made, 512, max_seq_length=64) == 64
    assert limit(made, 128, max_seq_length=4096) == 512
    assert limit(made, HUGE) == 512
    assert made.limits.vocab_size == 77


def test_the_plan_has_its_limits(tmp_path: Path) -> None:
    folder = write(tmp_path, BertConfig(max_position_embeddings=99), "BertModel")
    assert plan_of(folder).limits.max_model_len == 99
    save_head(folder, HeadSpec(max_seq_length=31), 768)
    assert plan_of(folder).limits.max_model_len == 31


@pytest.mark.parametrize(
    ("positions", "limits"),
    [
        ({"max_position_embeddings": -1}, (99, 99)),  # no end, as XLNet says
        ({"max_position_embeddings": 64, "n_positions": 256}, (99, 256)),  # as Nomic's of a base that grows
        ({"max_position_embeddings": 64, "n_positions": 32}, (64, 64)),
        ({"max_position_embeddings": 64, "n_positions": None}, (64, 64)),
    ],
)
def test_positions_that_are_not_all_there_are(
    positions: dict[str, int | None], limits: tuple[int, int], tmp_path: Path
) -> None:
    made = plan_of(write(tmp_path, BertConfig(), "BertModel"))
    made = replace(made, backbone=replace(made.backbone, config=SimpleNamespace(**positions)))  # type: ignore[arg-type]
    assert limit(made, 99) == limits[0]
    if "n_positions" in positions:
        assert limit(made, HUGE) == limits[1]


def test_queries_and_documents_may_be_longer_than_what_the_tokenizer_says(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, BertConfig(), "BertModel"))
    made = replace(made, late=SimpleNamespace(longest=180))  # type: ignore[arg-type]
    assert [limit(made, declared) for declared in (99, 300, 600)] == [180, 300, 512]


def test_no_limit_anywhere(tmp_path: Path) -> None:
    made = plan_of(write(tmp_path, BertConfig(), "BertModel"))
    made = replace(made, backbone=replace(made.backbone, config=SimpleNamespace()))  # type: ignore[arg-type]
    assert limit(made, HUGE, max_seq_length=99) == 99
    with pytest.raises(ExportError, match="set max_seq_length"):
        limit(made, HUGE)


@pytest.mark.parametrize("length", [-1, -512])
def test_limit_that_leaves_no_token(tmp_path: Path, length: int) -> None:
    made = plan_of(write(tmp_path, BertConfig(), "BertModel"))
    for given in ((128, length), (length, None)):
        with pytest.raises(ExportError, match=str(length)):
            limit(made, *given)


def test_as_many_positions_as_padding_takes_leave_no_token(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="limits texts to 0 tokens"):
        plan_of(write(tmp_path, RobertaConfig(max_position_embeddings=2, pad_token_id=1), "RobertaModel"))
