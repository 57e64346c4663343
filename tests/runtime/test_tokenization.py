import pytest

from poolgraph import LLM
from poolgraph.errors import InputError
from poolgraph.runtime.tokenization import TokenizationOptions, parse_tokenization_kwargs


def test_tokenization_kwargs():
    given = {"truncate_prompt_tokens": 3, "truncation_side": "left", "add_special_tokens": False}
    assert parse_tokenization_kwargs(given) == TokenizationOptions(**given)
    assert parse_tokenization_kwargs(None) == TokenizationOptions()
    assert parse_tokenization_kwargs({}, truncate_prompt_tokens=4).truncate_prompt_tokens == 4
    assert (
        parse_tokenization_kwargs({"truncate_prompt_tokens": 4}, truncate_prompt_tokens=4).truncate_prompt_tokens == 4
    )
    assert parse_tokenization_kwargs({"truncate_prompt_tokens": None}) == TokenizationOptions()


def test_tokenization_kwargs_without_effect_are_warned_about():
    with pytest.warns(UserWarning, match=r"tokenization_kwargs \['max_length', 'padding', 'stride'\] have no"):
        options = parse_tokenization_kwargs(
            {"stride": 2, "padding": "max_length", "max_length": 9, "truncate_prompt_tokens": 2}
        )
    assert options == TokenizationOptions(truncate_prompt_tokens=2)
    with pytest.warns(UserWarning, match=r"tokenization_kwargs \[3, 'stride'\] have no effect"):
        parse_tokenization_kwargs({"stride": 2, 3: 4})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be -1 .* or a positive"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens must be -1 .* or a positive"),
        ({"truncate_prompt_tokens": "3"}, "truncate_prompt_tokens must be an int, not str"),
        ({"truncation_side": "middle"}, "`truncation_side` must be either 'left' or 'right'."),
        ({"add_special_tokens": 1}, "add_special_tokens must be a bool, not int"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens=4 contradicts tokenization_kwargs, which say 5"),
    ],
)
def test_wrong_tokenization_kwargs(given, message):
    with pytest.raises(InputError, match=message):
        parse_tokenization_kwargs(given, truncate_prompt_tokens=4 if given.get("truncate_prompt_tokens") == 5 else None)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"truncation": True}, -1),
        ({"truncation": "longest_first", "max_length": 7}, 7),
        ({"truncation": True, "max_length": 7, "truncate_prompt_tokens": 7}, 7),
        ({"truncation": False}, None),
        ({"truncation": "do_not_truncate", "truncate_prompt_tokens": 3}, 3),
        ({"padding": False, "pad_prompt_tokens": None, "needs_detokenization": True}, None),
    ],
)
def test_the_words_of_transformers(given, kept):
    before = dict(given)
    assert parse_tokenization_kwargs(given) == TokenizationOptions(truncate_prompt_tokens=kept)
    assert given == before


def test_truncations_of_different_spellings_must_agree():
    with pytest.raises(InputError, match="truncate_prompt_tokens=7 contradicts tokenization_kwargs, which say 5"):
        parse_tokenization_kwargs({"truncation": True, "max_length": 7, "truncate_prompt_tokens": 5})


@pytest.mark.parametrize("method", ["embed", "encode", "score"])
def test_the_caller_is_warned(artifact, method):
    texts = ["w1"] * (2 if method == "score" else 1)
    with pytest.warns(UserWarning, match="have no effect") as caught:
        getattr(LLM(artifact), method)(*texts, tokenization_kwargs={"stride": 2})
    assert [warning.filename for warning in caught] == [__file__]
