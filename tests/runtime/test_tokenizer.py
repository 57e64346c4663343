import threading

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.manifest import Pooler, Tokenization, parse_manifest
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.runtime.tokenizer_file import load_tokenizer, types_texts

CLS, SEP, UNK, FIRST_WORD, LIMIT = 2, 3, 1, 4, 16
TOO_LONG = (
    "This model's maximum context length is 16 tokens. However, your prompt contains 22 input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt."
)


@pytest.fixture
def manifest(artifact):
    return parse_manifest((artifact / "poolgraph.json").read_bytes())


@pytest.fixture
def tokenizer(artifact, manifest):
    return TextTokenizer(artifact, manifest)


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def ids(encoded):
    return [text.input_ids.tolist() for text in encoded]


def test_baked_in_truncation_and_padding_are_off(tokenizer):
    encoded = tokenizer.encode(["w0", words(*range(10)), ""])
    assert ids(encoded) == [[CLS, 4, SEP], [CLS, *range(4, 14), SEP], [CLS, SEP]]
    assert [text.num_tokens for text in encoded] == [3, 12, 2]
    assert encoded[0].input_ids.dtype == np.int64
    assert encoded[0].token_type_ids is None


def test_token_types_where_texts_have_other_than_zeros(artifact, manifest, tmp_path):
    """As XLNet's tokenizer, whose last token is of a type of its own; BERT's has zeros for a single text."""
    with_types = msgspec.structs.replace(manifest, tokenization=Tokenization(pad_token_id=0, needs_token_type_ids=True))
    plain = TextTokenizer(artifact, with_types)
    assert plain.has_token_types
    assert plain.encode(["w0"])[0].token_type_ids is plain.encode_ids([5]).token_type_ids is None
    backend = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:2 $A:0 [SEP]:0", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    own = TextTokenizer(tmp_path, with_types)
    (text,) = own.encode(["w0 w1"])
    np.testing.assert_array_equal(text.token_type_ids, [2, 0, 0, 0])
    ((window,),) = own.locate(["w0 w1"])
    np.testing.assert_array_equal(window.token_type_ids, [2, 0, 0, 0])
    assert TextTokenizer(tmp_path, manifest).encode(["w0"])[0].token_type_ids is None


def test_a_vocabulary_without_the_words_that_are_tried_may_have_token_types():
    assert types_texts(Tokenizer(models.WordLevel({"x": 0}, unk_token="[UNK]")))
    digits = Tokenizer(models.BPE({"[CLS]": 0, "1": 1}, []))
    digits.add_special_tokens(["[CLS]"])
    digits.post_processor = processors.TemplateProcessing(single="[CLS]:0 $A:1", special_tokens=[("[CLS]", 0)])
    assert digits.encode("a b").type_ids == [0]
    assert types_texts(digits)


def test_without_special_tokens(tokenizer):
    assert ids(tokenizer.encode(["w0 w1"], add_special_tokens=False)) == [[4, 5]]


def test_prompt_goes_before_each_text(tokenizer):
    encoded = tokenizer.encode(["w5", "w6"], prompt="w1 ")
    assert ids(encoded) == [[CLS, 5, 9, SEP], [CLS, 5, 10, SEP]]
    assert [text.prompt_length for text in encoded] == [0, 0]


def test_prompt_length_counts_the_prompt_without_its_last_special_token(artifact, manifest):
    pooler = Pooler(pooling=("mean",), include_prompt=False, embedding_size=8)
    tokenizer = TextTokenizer(artifact, msgspec.structs.replace(manifest, pooler=pooler))
    assert [text.prompt_length for text in tokenizer.encode(["w5", ""], prompt="w1 w2 ")] == [3, 3]
    assert tokenizer.encode(["w5"])[0].prompt_length == 0


@pytest.mark.parametrize(("truncate_to", "expected"), [(-1, LIMIT - 1), (6, 5)])
def test_a_prompt_that_is_cut_is_measured_as_when_it_is_cut_alone(artifact, manifest, truncate_to, expected):
    pooler = Pooler(pooling=("mean",), include_prompt=False, embedding_size=8)
    tokenizer = TextTokenizer(artifact, msgspec.structs.replace(manifest, pooler=pooler))
    (encoded,) = tokenizer.encode(["w5"], prompt=words(*range(20)) + " ", truncate_to=truncate_to)
    assert (encoded.input_ids[-1], encoded.prompt_length) == (SEP, expected)


def test_a_prompt_that_grows_together_with_the_text_is_no_longer_than_the_text(manifest, tmp_path):
    merged = models.BPE({"a": 0, "b": 1, "c": 2, "bc": 3, "abc": 4}, [("b", "c"), ("a", "bc")])
    Tokenizer(merged).save(str(tmp_path / "tokenizer.json"))
    pooler = Pooler(pooling=("mean",), include_prompt=False, embedding_size=8)
    tokenizer = TextTokenizer(tmp_path, msgspec.structs.replace(manifest, pooler=pooler))
    (encoded,) = tokenizer.encode(["c"], prompt="ab")
    assert (encoded.input_ids.tolist(), encoded.prompt_length) == ([4], 1)


@pytest.mark.parametrize(("side", "kept"), [("right", range(4, 8)), ("left", range(20, 24))])
def test_the_models_own_truncation_side(artifact, manifest, side, kept):
    tokenization = Tokenization(pad_token_id=0, truncation_side=side)
    tokenizer = TextTokenizer(artifact, msgspec.structs.replace(manifest, tokenization=tokenization))
    assert ids(tokenizer.encode([words(*range(20))], truncate_to=6)) == [[CLS, *kept, SEP]]
    assert tokenizer.encode_ids([5, 6, 7], truncate_to=1).input_ids.tolist() == [5 if side == "right" else 7]


@pytest.mark.parametrize(("side", "kept"), [(None, range(4, 8)), ("right", range(4, 8)), ("left", range(20, 24))])
def test_truncation_keeps_the_special_tokens(tokenizer, side, kept):
    encoded = tokenizer.encode([words(*range(20)), "w0"], truncate_to=6, truncation_side=side)
    assert ids(encoded) == [[CLS, *kept, SEP], [CLS, 4, SEP]]
    assert [text.num_truncated_tokens for text in encoded] == [16, 0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("limit", [2, 3, 7, 15, 16])
@pytest.mark.parametrize("special", [True, False])
def test_truncation_is_the_tokenizers_own(artifact, tokenizer, side, limit, special):
    own = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    own.no_padding()
    own.enable_truncation(limit, direction=side)
    texts = [words(*range(count)) for count in (1, 5, 14, 15, 30)]
    expected = [encoding.ids for encoding in own.encode_batch(texts, add_special_tokens=special)]
    found = tokenizer.encode(texts, truncate_to=limit, truncation_side=side, add_special_tokens=special)
    assert ids(found) == expected


def test_minus_one_truncates_to_the_limit(tokenizer):
    assert tokenizer.encode([words(*range(20))], truncate_to=-1)[0].num_tokens == LIMIT


def test_too_long_says_so_in_vllms_words(tokenizer):
    with pytest.raises(InputError) as caught:
        tokenizer.encode([words(*range(20))])
    assert (caught.value.message, caught.value.parameter, caught.value.value) == (TOO_LONG, "input_tokens", 22)


@pytest.mark.parametrize("first_index", [0, 4096])
def test_too_long_names_the_text(tokenizer, first_index):
    with pytest.raises(InputError) as caught:
        tokenizer.encode(["w0", words(*range(20))], first_index=first_index)
    assert caught.value.message == f"{TOO_LONG} (text {first_index + 1})"


@pytest.mark.parametrize(
    ("truncate_to", "message"),
    [
        (
            17,
            "truncate_prompt_tokens=17 cannot be greater than max_total_tokens = 16. "
            "Please request a smaller truncation size.",
        ),
        (
            -2,
            "truncate_prompt_tokens=-2 must be -1 (the model's limit, 16) or at least 2, the number of special tokens.",
        ),
        (1, "truncate_prompt_tokens=1 must be -1 (the model's limit, 16) or at least 2, the number of special tokens."),
    ],
)
def test_truncations_refused(tokenizer, truncate_to, message):
    with pytest.raises(InputError) as caught:
        tokenizer.encode(["w0"], truncate_to=truncate_to)
    assert (caught.value.message, caught.value.parameter) == (message, "truncate_prompt_tokens")


def test_other_sides_refused(tokenizer):
    with pytest.raises(InputError, match=r"`truncation_side` must be either 'left' or 'right'\."):
        tokenizer.encode(["w0"], truncation_side="middle")


@pytest.mark.parametrize(("bad", "kind"), [(None, "NoneType"), (b"w0", "bytes"), (3, "int"), (["w0"], "list")])
def test_only_str_is_a_text(tokenizer, bad, kind):
    with pytest.raises(InputError, match=f"text 7 must be a str, got {kind}"):
        tokenizer.encode(["w0", bad], first_index=6)


def test_numpy_strings_are_texts(tokenizer):
    assert ids(tokenizer.encode(np.array(["w0", "w1"]))) == [[CLS, 4, SEP], [CLS, 5, SEP]]


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(InputError, match="text 1 is not valid Unicode: surrogates not allowed at character 2"):
        tokenizer.encode(["w0", "w0\ud800"])


def test_no_token_at_all_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"has no token \(text 1\)"):
        tokenizer.encode(["w0", ""], add_special_tokens=False)


def test_lower_case(artifact, manifest):
    lower = msgspec.structs.replace(manifest, tokenization=Tokenization(pad_token_id=0, do_lower_case=True))
    assert ids(TextTokenizer(artifact, lower).encode(["W0 [SEP]"])) == [[CLS, 4, SEP, SEP]]
    assert ids(TextTokenizer(artifact, manifest).encode(["W0"])) == [[CLS, UNK, SEP]]


def test_ids_are_taken_as_they_are(tokenizer):
    assert tokenizer.encode_ids([5, 6, 7]).input_ids.tolist() == [5, 6, 7]
    assert tokenizer.encode_ids([5, 6, 7], truncate_to=2).input_ids.tolist() == [5, 6]
    left = tokenizer.encode_ids(np.array([5, 6, 7]), truncate_to=2, truncation_side="left")
    assert (left.input_ids.tolist(), left.num_truncated_tokens) == ([6, 7], 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "has no token"),
        ([5, 65], "Token id 65 is out of vocabulary: ids run from 0 to 64"),
        ([-1], "Token id -1 is out of vocabulary"),
        ([5, 2**63], "Token id 9223372036854775808 is out of vocabulary"),
        ([-(2**70)], "Token id -1180591620717411303424 is out of vocabulary"),
        ([1.5], "flat list of int"),
        ([[1, 2]], "flat list of int"),
        (["a"], "flat list of int"),
        ([True], "flat list of int"),
        ([5] * 22, "your prompt contains 22 input tokens"),
    ],
)
def test_ids_refused(tokenizer, bad, message):
    with pytest.raises(InputError, match=message):
        tokenizer.encode_ids(bad)


def test_count_and_decode(tokenizer):
    assert tokenizer.count(["", "w0", words(*range(40))]) == [2, 3, 42]
    assert tokenizer.decode(np.array([CLS, 4, 5, SEP])) == "w0 w1"


def test_threads_with_different_truncations_do_not_disturb_each_other(tokenizer):
    failures = []

    def work(limit):
        for _ in range(50):
            found = tokenizer.encode([words(*range(30))] * 4, truncate_to=limit)
            if any(text.num_tokens != limit for text in found):
                failures.append(limit)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (3, 7, 12, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"model": 3}'])
def test_broken_tokenizer_files(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        load_tokenizer(path)
