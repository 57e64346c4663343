import copy

import numpy as np
import pytest

from poolgraph.errors import InputError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.prompts import encode_prompts, parse_prompts, parse_score_data
from poolgraph.runtime.tokenization import TokenizationOptions
from poolgraph.runtime.tokenizer import TextTokenizer


@pytest.mark.parametrize(
    ("prompts", "parsed"),
    [
        ("a", ["a"]),
        ("", [""]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        ([np.int64(1), 2], [[1, 2]]),
        (["a", "b"], ["a", "b"]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ({"prompt": "a"}, ["a"]),
        ({"prompt_token_ids": [1, 2]}, [[1, 2]]),
        ({"prompt": "a", "prompt_token_ids": [1, 2]}, [[1, 2]]),
        ({"prompt": "a", "multi_modal_data": None, "cache_salt": "x"}, ["a"]),
        (["a", [1], {"prompt": "b"}, {"prompt_token_ids": (2,)}], ["a", [1], "b", [2]]),
        ([[]], [[]]),
    ],
)
def test_prompts_of_every_kind(prompts, parsed):
    before = copy.deepcopy(prompts)
    assert parse_prompts(prompts) == parsed
    assert prompts == before


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "You must pass at least one prompt"),
        (None, r"prompts must be a str, a list of token ids, .* not NoneType"),
        (b"a", "prompts must be .* not bytes"),
        (bytearray(b"a"), "prompts must be .* not bytearray"),
        ({"prompt_token_ids": memoryview(b"a")}, r"prompts\['prompt_token_ids'\] must be .* not memoryview"),
        ({"prompt": "a", "multi_modal_data": np.zeros(2)}, "MultiModalParam is not supported for BertModel"),
        (3, "prompts must be .* not int"),
        (["a", 3], r"prompts\[1\] must be .* not int"),
        ([1, "a"], r"prompts\[0\] must be .* not int"),
        ([[1, 2], [1, "a"]], r"prompts\[1\] must be .* not a list of \['int', 'str'\]"),
        ([[True]], r"prompts\[0\] must be .* not a list of \['bool'\]"),
        ([["a"]], r"prompts\[0\] must be .* not a list of \['str'\]"),
        ({"data": 1}, "The 'data' field is only supported for the 'plugin' pooling task."),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "MultiModalParam is not supported for BertModel"),
        ({}, r"prompts\['prompt'\] must be a str, not NoneType"),
        (["a", {"prompt": 1}], r"prompts\[1\]\['prompt'\] must be a str, not int"),
        ({"prompt_token_ids": "12"}, r"prompts\['prompt_token_ids'\] must be a list of ints, not str"),
        ({"prompt_token_ids": [1.5]}, r"prompts\['prompt_token_ids'\] must be .* not a list of \['float'\]"),
        ({"text": "a"}, r"prompts has unknown keys \['text'\]; a prompt is a str"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        parse_prompts(prompts, architecture="BertModel")


def part(text) -> dict:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("data", "parsed"),
    [
        ([], []),
        ((), []),
        ("a", ["a"]),
        (["a", [1, 2]], ["a", [1, 2]]),
        ([1, 2], [[1, 2]]),
        ({"prompt": "a"}, ["a"]),
        ({"content": [part("a")]}, ["a"]),
        ({"content": (part("a"), part("b"))}, ["a\nb"]),
        ([{"content": [part("a")]}, "b"], ["a", "b"]),
    ],
)
def test_one_side_of_pairs(data, parsed):
    before = copy.deepcopy(data)
    assert parse_score_data(data) == parsed
    assert data == before


@pytest.mark.parametrize(
    "content",
    ["a", [], ["a"], [part(1)], [{"type": "image_url", "text": "a"}], [part("a"), {"type": "image_url"}], None],
)
def test_content_that_is_not_text(content):
    with pytest.raises(InputError, match="MultiModalParam is not supported for BertModel"):
        parse_score_data(["x", {"content": content}], architecture="BertModel")


@pytest.fixture
def tokenizer(artifact) -> TextTokenizer:
    return TextTokenizer(artifact, open_artifact(artifact))


def encode(tokenizer, prompts, truncations=None, **options) -> list[list[int]]:
    encoded = encode_prompts(tokenizer, prompts, TokenizationOptions(**options), truncations or [None] * len(prompts))
    return [text.input_ids.tolist() for text in encoded]


def test_encode_prompts_keeps_the_order_of_mixed_kinds(tokenizer):
    assert encode(tokenizer, ["w0", [9, 8], "w1", "w2", [7]]) == [[2, 4, 3], [9, 8], [2, 5, 3], [2, 6, 3], [7]]


def test_each_prompt_may_have_its_own_truncation(tokenizer):
    text = "w0 w1 w2 w3"
    assert encode(tokenizer, [text, text, [4, 5, 6]], [3, None, 1], truncate_prompt_tokens=4) == [
        [2, 4, 3],
        [2, 4, 5, 3],
        [4],
    ]


def test_sides_and_special_tokens(tokenizer):
    options = {"truncate_prompt_tokens": 2, "truncation_side": "left", "add_special_tokens": False}
    assert encode(tokenizer, ["w0 w1 w2", [4, 5, 6]], **options) == [[5, 6], [5, 6]]


def test_a_text_at_fault_is_named_by_its_place_among_all_prompts(tokenizer):
    with pytest.raises(InputError, match=r"maximum context length is 16 tokens.* 22 input tokens.*\(text 2\)"):
        encode(tokenizer, ["w0", [4], "w0 " * 20])
