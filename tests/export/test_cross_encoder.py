"""CrossEncoder's files: those that sentence-transformers writes itself, and those that cannot be compiled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_heads import change_json, pair_tokenizer, plan_of, save_cross_encoder, save_logit_score, save_model

from poolgraph.errors import ExportError, TaskNotSupported
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.cross_encoder import CrossEncoder, parse_cross_encoder


def parse(folder: Path) -> CrossEncoder | None:
    return parse_cross_encoder(Checkpoint(folder=folder, model="m", revision=None))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with one label, as transformers saves it."""
    folder = tmp_path_factory.mktemp("classifier")
    return save_model(folder, "BertModel", "BertForSequenceClassification", num_labels=1)


@pytest.fixture(scope="module")
def native(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as CrossEncoder saves it."""
    return save_cross_encoder(tmp_path_factory.mktemp("native"), classifier)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model that CrossEncoder reads two logits of."""
    base = tmp_path_factory.mktemp("causal")
    source = save_model(base / "source", "Qwen3Model", "Qwen3ForCausalLM", tokenizer=pair_tokenizer())
    return save_logit_score(base / "saved", source, true_token_id=70, false_token_id=71)


@pytest.fixture
def copy(native: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native, tmp_path / "copy"))


def test_checkpoint_without_the_files(classifier: Path) -> None:
    assert parse(classifier) is None


@pytest.mark.parametrize(
    "settings", [{}, {"model_type": "SentenceTransformer"}, {"model_type": "SparseEncoder"}, [], {"model_type": None}]
)
def test_files_of_another_kind_of_model(copy: Path, settings: Any) -> None:
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert parse(copy) is None


def test_what_cross_encoder_saves_itself(native: Path) -> None:
    found = parse(native)
    assert found is not None
    assert found.token_ids == ()
    files = found.sentence_transformer
    assert (files.pooling, files.head, files.max_seq_length, files.do_lower_case) == ((), (), None, False)
    assert files.prompts == {}


@pytest.mark.parametrize(("false_token_id", "ids"), [(71, (71, 70)), (None, (70,))])
def test_what_cross_encoder_saves_of_a_language_model(
    causal: Path, tmp_path: Path, false_token_id: int | None, ids: tuple[int, ...]
) -> None:
    folder = Path(shutil.copytree(causal, tmp_path / "copy"))
    change_json(folder / "1_LogitScore" / "config.json", false_token_id=false_token_id)
    found = parse(folder)
    assert found is not None
    assert found.token_ids == ids


def test_limits_and_prompts(copy: Path) -> None:
    change_json(copy / "sentence_bert_config.json", max_seq_length=40, do_lower_case=True)
    change_json(copy / "config_sentence_transformers.json", prompts={"query": "find: ", "none": "", "nothing": None})
    found = parse(copy)
    assert found is not None
    files = found.sentence_transformer
    assert (files.max_seq_length, files.do_lower_case) == (40, True)
    assert files.prompts == {"query": "find: ", "none": "", "nothing": ""}
    assert plan_of(copy).limits.max_model_len == 40


TRANSFORMER = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
LOGIT_SCORE = {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}


@pytest.mark.parametrize(
    "modules",
    [
        [],
        [LOGIT_SCORE],
        [TRANSFORMER, POOLING],
        [TRANSFORMER, POOLING, DENSE],
        [TRANSFORMER, LOGIT_SCORE, DENSE],
        [LOGIT_SCORE, TRANSFORMER],
        [{**TRANSFORMER, "path": "0_Transformer"}],
    ],
)
def test_modules_that_are_not_compiled_are_named(copy: Path, modules: list) -> None:
    (copy / "modules.json").write_text(json.dumps(modules))
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    with pytest.raises(ExportError) as caught:
        parse(copy)
    assert str(caught.value).startswith(f"modules.json of this CrossEncoder has the modules {kinds}; those that are")


@pytest.mark.parametrize("task", ["feature-extraction", "any-to-any", "fill-mask"])
def test_tasks_of_the_transformer_that_are_not_compiled(copy: Path, task: str) -> None:
    change_json(copy / "sentence_bert_config.json", transformer_task=task)
    with pytest.raises(ExportError, match=f"transformer_task '{task}'; compiled are .*'text-generation'"):
        parse(copy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("modules.json", "{}"),
        ("modules.json", '[{"type": 3, "path": ""}]'),
        ("modules.json", '[{"path": ""}]'),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}'),
        ("sentence_bert_config.json", "[1]"),
    ],
)
def test_files_that_are_not_what_they_should_be(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(ExportError, match=rf"{file} (of checkpoint .m. )?is not what"):
        parse(copy)


@pytest.mark.parametrize("content", ["{}", '{"true_token_id": "yes"}', "[]"])
def test_logit_score_without_its_token(causal: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(causal, tmp_path / "copy"))
    (folder / "1_LogitScore" / "config.json").write_text(content)
    with pytest.raises(ExportError, match=r"1_LogitScore/config\.json is not what sentence-transformers writes"):
        parse(folder)


def test_plan_of_what_cross_encoder_saves_itself(native: Path) -> None:
    made = plan_of(native)
    assert (made.tasks, made.head.pooling, made.head.activation) == (("classify", "token_classify"), ("cls",), "auto")
    assert made.scoring is not None
    assert (made.scoring.kind, made.scoring.template, made.has_token_types) == ("cross_encoder", None, True)


def test_several_labels_are_saved_with_their_own_activation(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "BertModel", "BertForSequenceClassification", num_labels=3)
    made = plan_of(save_cross_encoder(tmp_path / "saved", source))
    assert (made.head.activation, made.scoring) == ("identity", None)


def test_the_activation_that_was_saved_last(tmp_path: Path) -> None:
    """CrossEncoder keeps that of config.json as it was, and reads its own file first."""
    from sentence_transformers import CrossEncoder
    from torch import nn

    source = save_model(tmp_path / "source", "BertModel", "BertForSequenceClassification", num_labels=1)
    change_json(source / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    kept = save_cross_encoder(tmp_path / "kept", source)
    changed = save_cross_encoder(tmp_path / "changed", source, activation_fn=nn.Tanh())
    for folder, kind, word in ((kept, nn.Identity, "identity"), (changed, nn.Tanh, "tanh")):
        assert isinstance(CrossEncoder(str(folder), device="cpu").activation_fn, kind)
        assert plan_of(folder).head.activation == word


@pytest.mark.parametrize(("false_token_id", "difference"), [(71, True), (None, False)])
def test_plan_of_a_language_model_that_scores(
    causal: Path, tmp_path: Path, false_token_id: int | None, difference: bool
) -> None:
    folder = Path(shutil.copytree(causal, tmp_path / "copy"))
    change_json(folder / "1_LogitScore" / "config.json", false_token_id=false_token_id)
    made = plan_of(folder)
    (step,) = made.head.shared
    (stored,) = step.tensors.values()
    assert (stored.rows, stored.difference) == (((71, 70), True) if difference else ((70,), False))
    assert (made.tasks, made.head.converted, made.head.activation) == (("classify", "token_classify"), True, "auto")
    assert made.scoring is not None
    assert made.scoring.kind == "cross_encoder"
    assert made.template == pair_tokenizer().chat_template


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processing_kwargs": {"text": {"max_length": 16}}}, r"processing_kwargs for \['text'\]"),
        ({"model_kwargs": {"attention_type": "other"}}, r"the arguments \['attention_type'\]"),
        ({"tokenizer_name_or_path": "other"}, "names another tokenizer"),
    ],
)
def test_options_that_change_the_answers_are_refused(copy: Path, options: dict[str, Any], message: str) -> None:
    change_json(copy / "sentence_bert_config.json", **options)
    with pytest.raises(ExportError, match=message):
        parse(copy)


def test_options_of_tokenizer_and_model_are_read(copy: Path) -> None:
    options = {"processor_kwargs": {"model_max_length": 16, "truncation_side": "left"}}
    change_json(copy / "sentence_bert_config.json", **options, config_kwargs={"hidden_act": "relu"})
    made = plan_of(copy)
    assert (made.limits.max_model_len, made.tokenizer.truncation_side, made.config.hidden_act) == (16, "left", "relu")


def test_options_in_the_file_of_another_name(copy: Path) -> None:
    (copy / "sentence_bert_config.json").rename(copy / "sentence_roberta_config.json")
    change_json(copy / "sentence_roberta_config.json", max_seq_length=24)
    assert plan_of(copy).limits.max_model_len == 24


USERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


def test_no_template_is_guessed_where_the_files_say_that_pairs_are_rendered(tmp_path: Path) -> None:
    """The published one of Qwen3 rerankers would be another."""
    source = save_model(tmp_path / "source", "Qwen3Model", "Qwen3ForCausalLM", tokenizer=pair_tokenizer(USERS))
    saved = save_logit_score(tmp_path / "saved", source, true_token_id=70, false_token_id=71)
    with pytest.raises(TaskNotSupported, match="renders pairs through its chat template, which never prints"):
        plan_of(saved)
    assert plan_of(saved, score_template="qwen3_reranker").template is not None


def test_a_tokenizer_that_gives_no_token_types(copy: Path) -> None:
    change_json(copy / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert not plan_of(copy).has_token_types
