"""How pairs are scored: which template, by whose word, and which kind of scoring a head has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_heads import PAIR_TEMPLATE, change_json, pair_tokenizer, plan_of, save_model
from tiny_models import VOCAB_SIZE
from transformers import PreTrainedTokenizerBase

from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.export.head import HeadPlan
from poolgraph.export.message_template import TemplatePlan
from poolgraph.export.scoring import TEMPLATE_FILE, describe_scoring
from poolgraph.graphs.manifest import Scoring
from poolgraph.runtime.score_template import TEMPLATES, resolve_template

OWN = "own: {{ query }} {{ document }}"


def with_words(*words: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """A decoder's tokenizer that has each of ``words`` as one token."""
    tokenizer = pair_tokenizer(chat_template)
    tokenizer.add_tokens(list(words))
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Causal models whose vocabulary has the words of the published rerankers, and classifiers."""
    base = tmp_path_factory.mktemp("templates")
    words = ("no", "yes", "0", "1", "Yes")
    causal = {
        name: save_model(
            base / name, f"{name}Model", f"{name}ForCausalLM", tokenizer=with_words(*words), vocab_size=VOCAB_SIZE + 5
        )
        for name in ("Qwen2", "Qwen3", "Gemma", "Llama", "Mistral")
    }
    classifiers = {
        cls: save_model(base / cls, cls.partition("For")[0] + "Model", cls, num_labels=1)
        for cls in ("BertForSequenceClassification", "Qwen2ForSequenceClassification")
    }
    return {**causal, **classifiers}


def shipped(name: str) -> str:
    return resolve_template(name).source


@pytest.mark.parametrize(
    ("name", "options", "template"),
    [
        ("Qwen3", {"task": "score"}, "qwen3_reranker"),
        ("Qwen2", {"task": "score"}, "mxbai_rerank_v2"),
        ("Gemma", {"task": "score"}, "bge_reranker_v2_gemma"),
        ("Qwen3", {"hf_overrides": {"classifier_from_token": ["no", "yes"]}}, "qwen3_reranker"),
        (
            "Qwen2",
            {"hf_overrides": {"classifier_from_token": ["0", "1"], "method": "from_2_way_softmax"}},
            "mxbai_rerank_v2",
        ),
        ("Gemma", {"hf_overrides": {"classifier_from_token": ["Yes"]}}, "bge_reranker_v2_gemma"),
        ("Qwen3", {"task": "score", "score_template": "plain"}, "plain"),
        ("Qwen3", {"task": "score", "score_template": "nemotron_rerank"}, "nemotron_rerank"),
    ],
)
def test_templates_of_the_published_rerankers_are_picked_by_themselves(
    folders: Mapping[str, Path], name: str, options: dict[str, Any], template: str
) -> None:
    assert plan_of(folders[name], **options).template == shipped(template)


@pytest.mark.parametrize(
    ("name", "tokens", "method", "rows", "difference"),
    [
        ("Qwen3", ("no", "yes"), "from_2_way_softmax", ("no", "yes"), True),
        ("Qwen2", ("0", "1"), "from_2_way_softmax", ("0", "1"), True),
        ("Gemma", ("Yes",), "no_post_processing", ("Yes",), False),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_rows_of_the_published_rerankers(
    folders: Mapping[str, Path],
    name: str,
    tokens: tuple[str, ...],
    method: str,
    rows: tuple[str, ...],
    difference: bool,
    named: bool,
) -> None:
    """By ``--task score`` alone, as by vLLM's overrides."""
    overrides = {"classifier_from_token": list(tokens), "method": method} if named else {}
    made = plan_of(folders[name], task="score", hf_overrides=overrides)
    vocabulary = made.tokenizer.get_vocab()
    (step,) = made.head.shared
    for stored in step.tensors.values():
        assert (stored.rows, stored.difference) == (tuple(vocabulary[token] for token in rows), difference)
    assert (made.sequence_size, made.labels) == (1, ())
    assert made.scoring == Scoring(kind="cross_encoder", template=TEMPLATE_FILE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Qwen3", {"hf_overrides": {"classifier_from_token": ["yes", "no"], "method": "from_2_way_softmax"}}),
        ("Qwen2", {"hf_overrides": {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}}),
        ("Llama", {"hf_overrides": {"classifier_from_token": ["Yes"]}}),
        ("Mistral", {"task": "score", "hf_overrides": {"classifier_from_token": ["Yes"]}}),
        ("Qwen2ForSequenceClassification", {"task": "score"}),
    ],
)
def test_causal_rerankers_without_a_template_are_refused_with_the_names(
    folders: Mapping[str, Path], name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(TaskNotSupported) as caught:
        plan_of(folders[name], **options)
    assert f"give --score-template with a file or one of {', '.join(sorted(TEMPLATES))}" in str(caught.value)


def test_tokens_that_the_tokenizer_does_not_have(folders: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match=r"names \['perhaps'\]"):
        plan_of(folders["Qwen3"], hf_overrides={"classifier_from_token": ["no", "perhaps"]})


def test_template_that_is_none(folders: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match="'no_such' is no file and no template's text; names are "):
        plan_of(folders["Qwen3"], task="score", score_template="no_such")


# --- the checkpoint's own, and the caller's


@pytest.fixture
def reranker(folders: Mapping[str, Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(folders["Qwen3"], tmp_path / "reranker"))
    change_json(folder / "config.json", classifier_from_token=["no", "yes"], method="from_2_way_softmax")
    return folder


def test_template_file_of_the_checkpoint_goes_before_the_published_one(reranker: Path) -> None:
    assert plan_of(reranker).template == shipped("qwen3_reranker")
    (reranker / TEMPLATE_FILE).write_text(OWN)
    assert plan_of(reranker).template == OWN


def test_the_callers_template_goes_before_all(reranker: Path, tmp_path: Path) -> None:
    (reranker / TEMPLATE_FILE).write_text(OWN)
    file = tmp_path / "mine.jinja"
    file.write_text("mine: {{ query }} {{ document }}")
    assert plan_of(reranker, score_template=str(file)).template == "mine: {{ query }} {{ document }}"
    assert plan_of(reranker, score_template="plain").template == shipped("plain")


@pytest.mark.parametrize(
    ("chat_template", "taken"),
    [
        (PAIR_TEMPLATE, True),
        ('{% for m in messages if m.role == "query" or m.role == "document" %}{{ m.content }}{% endfor %}', True),
        ("{% for m in messages if m.role == 'query' %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", False),
        ("{% for m in messages if m.role == 'user' %}query document {{ m.content }}{% endfor %}", False),
    ],
)
def test_chat_template_is_taken_if_it_was_written_for_pairs(reranker: Path, chat_template: str, taken: bool) -> None:
    with_words("no", "yes", "0", "1", "Yes", chat_template=chat_template).save_pretrained(reranker)
    assert plan_of(reranker).template == (chat_template if taken else shipped("qwen3_reranker"))


def test_models_that_take_a_pair_need_no_template(folders: Mapping[str, Path]) -> None:
    made = plan_of(folders["BertForSequenceClassification"])
    assert (made.template, made.scoring) == (None, Scoring(kind="cross_encoder", template=None))


def test_a_template_for_a_model_that_takes_a_pair(folders: Mapping[str, Path]) -> None:
    made = plan_of(folders["BertForSequenceClassification"], score_template="plain")
    assert made.template == shipped("plain")
    assert made.scoring == Scoring(kind="cross_encoder", template=TEMPLATE_FILE)


def test_causal_classifier_that_is_not_to_score_needs_no_template(folders: Mapping[str, Path]) -> None:
    made = plan_of(folders["Qwen2ForSequenceClassification"])
    assert (made.template, made.scoring, made.tasks) == (None, None, ("classify", "token_classify"))


def test_classifiers_whose_kind_needs_a_template(folders: Mapping[str, Path]) -> None:
    from poolgraph.export.checkpoint import open_checkpoint
    from poolgraph.export.options import ExportOptions
    from poolgraph.export.scoring import choose_template

    made = plan_of(folders["Qwen2ForSequenceClassification"])
    made.config.architectures = ["LlamaBidirectionalForSequenceClassification"]
    template = choose_template(
        ExportOptions(),
        HeadPlan(kind="logits", pooling=("mean",)),
        made.config,
        open_checkpoint(folders["Qwen2ForSequenceClassification"]),
        made.tokenizer,
    )
    assert template == TemplatePlan(source=shipped("nemotron_rerank"))


@pytest.mark.parametrize(
    ("kind", "pooling", "num_labels", "template", "late", "expected"),
    [
        ("embedding", ("cls",), 0, None, False, Scoring(kind="bi_encoder")),
        ("embedding", None, 0, None, True, Scoring(kind="late_interaction")),
        ("logits", ("cls",), 1, None, False, Scoring(kind="cross_encoder")),
        ("logits", ("cls",), 2, None, False, None),
        ("logits", ("cls",), 2, "x", False, None),
        ("logits", None, 1, None, False, None),
        ("logits", ("lasttoken",), 1, None, False, None),
        ("logits", ("lasttoken",), 1, "x", False, Scoring(kind="cross_encoder", template=TEMPLATE_FILE)),
    ],
)
def test_kind_of_scoring(
    kind: Any, pooling: Any, num_labels: int, template: str | None, late: bool, expected: Scoring | None
) -> None:
    head = HeadPlan(kind=kind, pooling=pooling)
    plan = None if template is None else TemplatePlan(source=template)
    assert describe_scoring(head, num_labels, plan, late_interaction=late) == expected
