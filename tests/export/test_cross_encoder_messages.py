"""CrossEncoders of messages: what their files say of the chat template, and what cannot be compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_heads import (
    PAIR_TEMPLATE,
    change_json,
    pair_tokenizer,
    plan_of,
    save_cross_encoder,
    save_logit_score,
    save_model,
)

from poolgraph.errors import ExportError, TaskNotSupported
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.cross_encoder import parse_cross_encoder
from poolgraph.export.scoring import TEMPLATE_FILE
from poolgraph.graphs.manifest import Scoring

OPTIONS = "sentence_bert_config.json"
SETTINGS = "config_sentence_transformers.json"
ANY_ROLE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FLAT = {"text": {"method": "forward"}, "message": {"method": "forward", "format": "flat"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("causal")
    source = save_model(base / "source", "Qwen3Model", "Qwen3ForCausalLM", tokenizer=pair_tokenizer(ANY_ROLE))
    return save_logit_score(base / "saved", source, true_token_id=70, false_token_id=71)


@pytest.fixture
def causal(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "causal"))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    source = save_model(tmp_path / "source", "BertModel", "BertForSequenceClassification", num_labels=1)
    return save_cross_encoder(tmp_path / "classifier", source)


def set_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def set_arguments(folder: Path, **arguments: Any) -> Path:
    change_json(folder / OPTIONS, processing_kwargs={"chat_template": arguments})
    return folder


def scoring_of(folder: Path, **options: Any) -> Scoring:
    scoring = plan_of(folder, **options).scoring
    assert scoring is not None
    return scoring


def test_a_template_of_any_role_is_compiled(causal: Path) -> None:
    assert plan_of(causal).template == ANY_ROLE
    assert scoring_of(causal) == Scoring(
        kind="cross_encoder", template=TEMPLATE_FILE, content_parts=False, add_special_tokens=False
    )


@pytest.mark.parametrize(("form", "parts"), [("flat", False), ("structured", True), ("auto", False), (None, False)])
def test_the_form_of_a_message_is_that_of_the_files(causal: Path, form: str | None, parts: bool) -> None:
    set_template(
        causal, "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
    )
    said = {} if form is None else {"format": form}
    change_json(causal / OPTIONS, modality_config={"message": {"method": "forward", **said}})
    assert scoring_of(causal).content_parts is parts


def test_arguments_of_the_template(causal: Path) -> None:
    set_template(causal, ANY_ROLE + "{{ voice }}{{ eos_token }}{{ add_generation_prompt }}")
    ignored = {"restore_suffix": False, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
    set_arguments(causal, voice="pool", add_generation_prompt=True, max_length=40, **ignored)
    assert scoring_of(causal).template_kwargs == {
        "eos_token": "<|endoftext|>",
        "voice": "pool",
        "add_generation_prompt": True,
    }
    assert plan_of(causal).limits.max_model_len == 40


def test_another_template_by_its_text_and_by_its_name(causal: Path) -> None:
    assert plan_of(set_arguments(causal, chat_template=PAIR_TEMPLATE)).template == PAIR_TEMPLATE
    (causal / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "rank", "template": PAIR_TEMPLATE}]
    change_json(causal / "tokenizer_config.json", chat_template=named)
    assert plan_of(set_arguments(causal, chat_template="rank")).template == PAIR_TEMPLATE


@pytest.mark.parametrize("name", ["tools", "documents", "tokenize", "continue_final_message", "messages", "query"])
def test_arguments_that_cannot_be_compiled(causal: Path, name: str) -> None:
    with pytest.raises(ExportError, match=rf"{OPTIONS} gives the chat template the arguments \['{name}'\], which"):
        plan_of(set_arguments(causal, **{name: []}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chat_template": ["voice"]}, "is not what it should be"),
        ({"chat_template": {"chat_template": {"default": ANY_ROLE}}}, r"the arguments \['chat_template'\], which"),
        ({"chat_template": {"max_length": "long"}}, r"the arguments \['max_length'\], which"),
        ({"chat_template": {"max_length": True}}, r"the arguments \['max_length'\], which"),
        ({"chat_template": {}, "text": {"truncation": False}}, r"processing_kwargs for \['text'\]"),
    ],
)
def test_arguments_that_are_none(causal: Path, arguments: dict[str, Any], message: str) -> None:
    change_json(causal / OPTIONS, processing_kwargs=arguments)
    with pytest.raises(ExportError, match=message):
        plan_of(causal)


def test_arguments_without_a_template_have_no_effect(classifier: Path) -> None:
    assert scoring_of(set_arguments(classifier, voice="pool")) == Scoring(kind="cross_encoder")


SET_FIRST = (
    '{%- set asked = messages | selectattr("role", "eq", "system") | map(attribute="content") | first | d("?") -%}\n'
    '{%- set found = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}\n'
    "<sys>{{ asked }}\n{{ (messages | selectattr('role', 'eq', 'query') | first).content }}\n"
    "{{\n    found\n}}<end>\n\n\n"
)
SYSTEM_APART = (
    "{{- eos_token }}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content'] | trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n"
    "{%- if tools is not none %}tools{%- endif %}{{- system }}\n"
    "{%- for m in messages %}\n    {{- '<' + m['role'] + '>' + m['content'] | trim }}\n{%- endfor %}\n"
)


@pytest.mark.parametrize("template", [SET_FIRST, SYSTEM_APART])
def test_the_ways_in_which_templates_are_published(causal: Path, template: str) -> None:
    """Whitespace that is taken away, lines within expressions, a system message that is looked at first."""
    change_json(causal / SETTINGS, prompts={"find": " find  "}, default_prompt_name="find")
    assert plan_of(set_template(causal, template)).template == template


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content }}",
        "{{ messages[1].content }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages if m.role in ('query', 'document') %}{{ m.role }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_print_both_texts(causal: Path, template: str) -> None:
    with pytest.raises(TaskNotSupported, match=r"this CrossEncoder renders pairs through .*: give --score-template"):
        plan_of(set_template(causal, template))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ANY_ROLE + "{% generation %}{% endgeneration %}", "does not compile: .*generation"),
        (ANY_ROLE + "{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
        (ANY_ROLE + "{{ messages }}", "prints texts and numbers, not a list"),
        (ANY_ROLE + "{{ 'later' if strftime_now is defined }}", "poolgraph renders .* and transformers "),
    ],
)
def test_a_template_that_the_sandbox_renders_otherwise(causal: Path, template: str, message: str) -> None:
    with pytest.raises(ExportError, match=f"(?s)the chat template of this CrossEncoder .*{message}"):
        plan_of(set_template(causal, template))


def test_a_default_prompt_that_the_template_refuses(causal: Path) -> None:
    set_template(causal, "{{ raise_exception('no system') if messages[0].role == 'system' }}" + ANY_ROLE)
    assert scoring_of(causal).template is not None
    change_json(causal / SETTINGS, prompts={"find": "find "}, default_prompt_name="find")
    with pytest.raises(TaskNotSupported, match=r"its chat template, which fails .*no system"):
        plan_of(causal)


def test_the_callers_template_and_that_of_the_folder_go_before_the_chat_template(causal: Path) -> None:
    plain = Scoring(kind="cross_encoder", template=TEMPLATE_FILE)
    assert scoring_of(causal, score_template="plain") == plain
    (causal / TEMPLATE_FILE).write_text("{{ query }} {{ document }}")
    assert plan_of(causal).template == "{{ query }} {{ document }}"
    assert scoring_of(causal) == plain


def test_no_template_where_the_files_know_no_messages(classifier: Path) -> None:
    set_template(classifier, PAIR_TEMPLATE)
    assert plan_of(classifier).template is None
    change_json(classifier / OPTIONS, modality_config=FLAT)
    assert plan_of(classifier).template == PAIR_TEMPLATE


def test_prompts_and_the_default_one(causal: Path) -> None:
    prompts = {"find": "find ", "none": "", "nothing": None}
    change_json(causal / SETTINGS, prompts=prompts, default_prompt_name="find")
    made = plan_of(causal).sentence_transformer
    assert (made.prompts, made.default_prompt_name) == ({"find": "find ", "none": "", "nothing": ""}, "find")
    change_json(causal / SETTINGS, default_prompt_name="swim")
    with pytest.raises(ExportError, match=r"the default prompt 'swim', but has only the prompts \['find', 'none',"):
        plan_of(causal)


@pytest.mark.parametrize("content", [{"prompts": ["find"]}, {"prompts": {"find": 3}}, {"default_prompt_name": 3}])
def test_prompts_that_are_none(causal: Path, content: dict[str, Any]) -> None:
    change_json(causal / SETTINGS, **content)
    with pytest.raises(ExportError, match=f"{SETTINGS} is not what sentence-transformers writes"):
        parse_cross_encoder(Checkpoint(folder=causal, model="m", revision=None))


def test_several_labels_have_no_pairs_of_messages_and_no_default_prompt(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "BertModel", "BertForSequenceClassification", num_labels=3)
    folder = save_cross_encoder(tmp_path / "saved", source, prompts={"find": "find "})
    assert plan_of(folder).scoring is None
    change_json(folder / SETTINGS, default_prompt_name="find")
    with pytest.raises(ExportError, match="default prompt 'find' before every pair, and has 3 labels"):
        plan_of(folder)
    change_json(folder / SETTINGS, default_prompt_name=None)
    change_json(set_template(folder, PAIR_TEMPLATE) / OPTIONS, modality_config=FLAT)
    with pytest.raises(ExportError, match="renders every pair through its chat template, and has 3 labels"):
        plan_of(folder)
    assert plan_of(folder, task="embed").tasks == ("embed", "token_embed")


def test_embeddings_of_a_cross_encoder_have_no_default_prompt(causal: Path) -> None:
    """The prompt is for pairs; nothing says that a text alone begins with it."""
    change_json(causal / SETTINGS, prompts={"find": "find "}, default_prompt_name="find")
    for task, name in (("embed", None), ("auto", "find")):
        made = plan_of(causal, task=task).sentence_transformer
        assert (made.prompts, made.default_prompt_name) == ({"find": "find "}, name)
