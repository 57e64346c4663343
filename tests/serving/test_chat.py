"""Chat templates of artifacts, broken ones included."""

from __future__ import annotations

import json

import pytest

from poolgraph.errors import ArtifactError
from poolgraph.serving.chat import read_chat_template


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
