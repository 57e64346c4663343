"""Chat templates of artifacts, broken ones included."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_engine import FakeRegistry, build_settings
from tiny_artifact import write_artifact

from poolgraph.errors import ArtifactError, InputError
from poolgraph.runtime.model_arguments import ModelArguments
from poolgraph.serving.app import build_app
from poolgraph.serving.chat import read_chat_template
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.observer import NullObserver
from poolgraph.serving.registry import open_registry

TALK = {"messages": [{"role": "user", "content": "w1"}]}


@pytest.fixture
def make_templated_site(make_site):
    """Return a function that serves a model with the template of ``--chat-template``."""

    def make(kind, template, **settings):
        site = make_site(kind)
        model = replace(site.model, runner=replace(site.model.runner, chat_template=str(template)))
        return replace(site, app=build_app(FakeRegistry((model,)), build_settings(**settings), NullObserver()))

    return make


def token_strs(site, **fields):
    return site.post("/tokenize", {**TALK, "return_token_strs": True, **fields}).json()["token_strs"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\ud800", "[" * 100_000], ids=range(7))
def test_a_tokenizer_config_that_is_no_json_object(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json is no JSON object"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("value", "template"),
    [
        (None, None),
        ("one", "one"),
        (5, None),
        ([], None),
        ([{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}], "one"),
        ([{"name": "default", "template": 5}], None),
        ([5, {"name": []}, {}], None),
    ],
)
def test_the_template_that_a_tokenizer_config_holds(tmp_path, value, template):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert read_chat_template(tmp_path) == template


def test_a_file_of_its_own_goes_before(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    (tmp_path / "chat_template.jinja").write_text("two\n")
    assert read_chat_template(tmp_path) == "two\n"


@pytest.mark.parametrize("kind", ["embedder", "chatty"])
@pytest.mark.parametrize("in_file", [False, True])
def test_the_servers_template_is_that_of_messages(make_templated_site, tmp_path, kind, in_file):
    template = "{{ messages[0]['content'] }} w9"
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    site = make_templated_site(kind, file if in_file else template)
    assert token_strs(site) == ["w1", "w9"]
    (item,) = site.post("/v1/embeddings", {**TALK, "encoding_format": "base64"}).json()["data"]
    plain = {"input": "w1 w9", "add_special_tokens": False, "encoding_format": "base64"}
    assert [item] == site.post("/v1/embeddings", plain).json()["data"]


def test_a_trusted_requests_template_goes_before_the_servers(make_templated_site):
    site = make_templated_site("chatty", "{{ messages[0]['content'] }} w9", trust_request_chat_template=True)
    assert token_strs(site, chat_template="{{ messages[0]['content'] }} w8") == ["w1", "w8"]
    assert token_strs(site) == ["w1", "w9"]


def test_a_score_template_is_not_that_of_messages(make_templated_site):
    site = make_templated_site("reranker", "{{ query }} w9 {{ document }}")
    answer = site.post("/classify", TALK)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]
    (item,) = site.post("/score", {"text_1": "w1", "text_2": "w2"}).json()["data"]
    assert item["tokens_used"] == len(["[CLS]", "w1", "w9", "w2", "[SEP]"])


def test_the_name_of_a_shipped_score_template_is_not_that_of_messages(make_templated_site):
    assert token_strs(make_templated_site("chatty", "plain")) == ["u", "w1", ".", "a"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("nowhere.jinja", r"the chat template nowhere\.jinja cannot be read: No such file or directory"),
        ("{% for %}", "the chat template does not compile"),
    ],
)
def test_a_broken_template_of_the_server_is_told_before_anything_is_served(tmp_path, template, message):
    arguments = ModelArguments(model=write_artifact(tmp_path / "a"), chat_template=template)
    with pytest.raises(InputError, match=message):
        open_registry([arguments], EngineSettings(warm_up_seconds=0.0), NullObserver())
