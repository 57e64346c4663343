import msgspec
import numpy as np
import pytest

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import parse_manifest
from poolgraph.runtime.texts import resolve_prompt, resolve_texts, resolve_truncation


@pytest.mark.parametrize(
    ("texts", "resolved"),
    [("a", ["a"]), ("", [""]), (("a", "b"), ["a", "b"]), (np.array(["a"]), ["a"]), (iter(["a"]), ["a"])],
)
def test_texts(texts, resolved):
    assert resolve_texts(texts) == resolved


@pytest.mark.parametrize("bad", [b"a", None, 3, {"a": 1}])
def test_not_texts(bad):
    with pytest.raises(InputError, match="texts must be a str or a list of str, got"):
        resolve_texts(bad)


def test_an_array_of_no_dimension_is_no_list():
    with pytest.raises(InputError, match="got a ndarray that has no items"):
        resolve_texts(np.array("a"))


def test_generators_are_texts():
    assert resolve_texts(text for text in ("a", "b")) == ["a", "b"]


def test_truncate_is_a_bool_and_no_number_of_tokens():
    assert [resolve_truncation(value) for value in (None, False, True)] == [None, None, -1]
    with pytest.raises(InputError, match="truncate must be a bool, not int: texts are cut to the model's limit"):
        resolve_truncation(64)


def test_no_texts():
    with pytest.raises(InputError, match="You must pass at least one prompt"):
        resolve_texts([])


@pytest.fixture
def manifest(make_artifact):
    directory = make_artifact(default_prompt_name="passage")
    return parse_manifest((directory / "poolgraph.json").read_bytes())


@pytest.mark.parametrize(
    ("name", "prompt", "resolved"),
    [(None, None, "w3 "), ("query", None, "w1 w2 "), ("query", "own", "own"), (None, "", "")],
)
def test_prompts(manifest, name, prompt, resolved):
    assert resolve_prompt(manifest, prompt_name=name, prompt=prompt) == resolved


def test_unknown_prompt_name(manifest):
    with pytest.raises(
        InputError, match=r"prompt name 'nope' is not one of the model's prompts \['passage', 'query'\]"
    ):
        resolve_prompt(manifest, prompt_name="nope", prompt=None)
    with pytest.raises(InputError, match=r"prompt name 'nope': the model has no prompts; leave it out"):
        resolve_prompt(msgspec.structs.replace(manifest, prompts={}), prompt_name="nope", prompt=None)


@pytest.mark.parametrize("bad", [["query"], 1, b"query"])
def test_prompt_name_that_is_no_text(manifest, bad):
    with pytest.raises(InputError, match=f"prompt_name must be a str, got {type(bad).__name__}"):
        resolve_prompt(manifest, prompt_name=bad, prompt=None)


def test_prompt_that_is_no_text(manifest):
    with pytest.raises(InputError, match="prompt must be a str, got int"):
        resolve_prompt(manifest, prompt_name=None, prompt=3)
