"""Pairs against transformers' own tokenizers: ids, token types and every way of cutting."""

import random
import threading

import numpy as np
import pytest
from tiny_models import bert_tokenizer, roberta_tokenizer, xlm_roberta_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from poolgraph.errors import ArtifactError, InputError
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.graphs.manifest import Limits, Manifest, Pooler, Report, Source, Tokenization
from poolgraph.runtime.pair_tokenizer import encode_pairs, learn_frame
from poolgraph.runtime.text_cuts import cut_texts
from poolgraph.runtime.tokenizer import TextTokenizer

LIMIT = 128
MAKERS = {"bert": bert_tokenizer, "roberta": roberta_tokenizer, "xlm_roberta": xlm_roberta_tokenizer}
WORDS = [
    *(word for sentence in PROBE_SENTENCES for word in sentence.split()),
    "日本語",
    "😀😀",
    "ünïcödé",
    "[SEP]",
    "</s>",
]


def build_manifest(**tokenization) -> Manifest:
    return Manifest(
        poolgraph_version="0",
        created="",
        source=Source(model="tiny", revision=None, content_hash="0"),
        architecture="TinyModel",
        tasks=("classify",),
        default_task="classify",
        pooler=Pooler(pooling=("cls",), embedding_size=1),
        limits=Limits(max_model_len=LIMIT, vocab_size=400),
        tokenization=Tokenization(**({"pad_token_id": 0, "needs_token_type_ids": True} | tokenization)),
        variants=(),
        report=Report(reference="none"),
        files={},
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each tokenizer, as its publisher saves it."""
    folders = {}
    for name, make in MAKERS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(folders[name])
    return folders


def load_oracle(folder, **options):
    """transformers' tokenizer of a folder; training it again would give other ids."""
    return PreTrainedTokenizerFast.from_pretrained(folder, **options)


@pytest.fixture
def bert(folders):
    return TextTokenizer(folders["bert"], build_manifest())


def draw_text(source, longest=90):
    return " ".join(source.choices(WORDS, k=source.choice([0, 1, 2, 5, 20, longest])))


def transformers_pair(tokenizer, query, document, limit):
    """The oracle's ids and types; None where it cannot cut (its ids are then too many, or it raises)."""
    try:
        # Lists, as in a batch: a lone empty document would make transformers drop the pair.
        answer = tokenizer([query], [document], truncation=True, max_length=limit, return_token_type_ids=True)
    except Exception:
        return None
    ids, types = answer["input_ids"][0], answer["token_type_ids"][0]
    return (ids, types) if len(ids) <= limit else None


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.filterwarnings("ignore:Be aware")
def test_pairs_are_cut_as_transformers_cuts_them(name, side, folders):
    oracle = load_oracle(folders[name], truncation_side=side)
    tokenizer = TextTokenizer(folders[name], build_manifest(truncation_side=side))
    source = random.Random(f"{name} {side}")
    compared = 0
    for _ in range(80):
        query, document, limit = draw_text(source), draw_text(source), source.randint(5, LIMIT)
        expected = transformers_pair(oracle, query, document, limit)
        if expected is None:
            continue
        (found,) = encode_pairs(tokenizer, [(query, document)], truncate_to=limit)
        assert (found.input_ids.tolist(), found.token_type_ids.tolist()) == expected
        whole = transformers_pair(oracle, query, document, 10_000)
        assert found.num_truncated_tokens == len(whole[0]) - len(expected[0])
        compared += 1
    assert compared >= 75


@pytest.mark.parametrize("name", MAKERS)
def test_whole_pairs_are_the_tokenizers_own_in_any_batch(name, folders):
    source = random.Random(name)
    pairs = [(draw_text(source, 8)[:40], draw_text(source, 8)[:40]) for _ in range(60)]
    queries, documents = map(list, zip(*pairs, strict=True))
    expected = load_oracle(folders[name])(queries, documents, return_token_type_ids=True)
    tokenizer = TextTokenizer(folders[name], build_manifest())
    found = encode_pairs(tokenizer, pairs)
    assert [text.input_ids.tolist() for text in found] == expected["input_ids"]
    assert [text.token_type_ids.tolist() for text in found] == expected["token_type_ids"]
    for pair, text in zip(pairs, found, strict=True):
        np.testing.assert_array_equal(encode_pairs(tokenizer, [pair])[0].input_ids, text.input_ids)


def test_the_form_of_a_pair_is_read_off_the_post_processor():
    specials = [("[CLS]", 0), ("[SEP]", 1)]
    backend = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "[UNK]": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shapes = {
        None: (0, [2, 2, 3], [0, 0, 1]),
        processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0)): (3, [0, 2, 2, 1, 3, 1], [0, 0, 0, 0, 1, 1]),
        processors.RobertaProcessing(("[SEP]", 1), ("[CLS]", 0)): (4, [0, 2, 2, 1, 1, 3, 1], [0] * 7),
        processors.TemplateProcessing(single="$A", pair="$B:2 [SEP]:5 $A:1", special_tokens=specials): (
            1,
            [3, 1, 2, 2],
            [2, 5, 1, 1],
        ),
    }
    for processor, (num_special, ids, types) in shapes.items():
        if processor is not None:
            backend.post_processor = processor
        frame = learn_frame(backend)
        assert frame.num_special_tokens == num_special
        joined = frame.join((np.array([2, 2]), np.array([3])))
        assert [part.tolist() for part in joined] == [ids, types]


def test_a_form_that_repeats_a_text_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $A:1 $B $B", special_tokens=[])
    with pytest.raises(ArtifactError, match="does more to a pair"):
        learn_frame(backend)


def test_token_types_only_where_the_model_takes_them(folders):
    for needed in (True, False):
        tokenizer = TextTokenizer(folders["bert"], build_manifest(needs_token_type_ids=needed))
        assert (encode_pairs(tokenizer, [("a", "b")])[0].token_type_ids is not None) == needed


@pytest.mark.parametrize(
    ("num_pairs", "first_index", "suffix"), [(1, 0, ""), (2, 0, " (pair 1)"), (2, 4096, " (pair 4097)")]
)
def test_too_long_says_so_in_vllms_words(bert, num_pairs, first_index, suffix):
    pairs = [("a", "b")] * (num_pairs - 1) + [("a", "pool " * 200)]
    with pytest.raises(InputError) as caught:
        encode_pairs(bert, pairs, first_index=first_index)
    number = caught.value.value
    assert number > LIMIT
    assert caught.value.message == (
        f"This model's maximum context length is {LIMIT} tokens. However, your prompt contains {number} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
        + suffix
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_to": 129}, "truncate_prompt_tokens=129 cannot be greater than max_total_tokens = 128"),
        ({"truncate_to": 2}, "or at least 3, the number of special tokens"),
        ({"truncation_side": "middle"}, "`truncation_side` must be either 'left' or 'right'"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc must be a non-negative integer"),
        ({"max_tokens_per_query": True}, "max_tokens_per_query must be a non-negative integer"),
        ({"max_tokens_per_query": 2.0}, "max_tokens_per_query must be a non-negative integer"),
        ({"max_tokens_per_doc": 128}, r"max_tokens_per_doc \(128\) must be less than max_model_len \(128\)\."),
    ],
)
def test_options_refused(bert, options, message):
    with pytest.raises(InputError, match=message):
        encode_pairs(bert, [("a", "b")], **options)


@pytest.mark.parametrize(
    ("pairs", "message"), [([("a", None)], "text 0 must be a str"), ([(b"a", "b")], "text 0 must")]
)
def test_only_str_is_a_text(bert, pairs, message):
    with pytest.raises(InputError, match=message):
        encode_pairs(bert, pairs)


def test_a_lone_surrogate_is_named_by_its_pair(bert):
    with pytest.raises(InputError, match="text 7 is not valid Unicode"):
        encode_pairs(bert, [("a", "b"), ("a", "b"), ("a", "\ud800")], first_index=5)


@pytest.mark.parametrize("name", MAKERS)
def test_limits_of_each_text(name, folders):
    oracle = load_oracle(folders[name])
    tokenizer = TextTokenizer(folders[name], build_manifest())
    query, document = "where is the pool of graphs", "a quick brown fox jumps over the lazy dog"
    (found,) = encode_pairs(tokenizer, [(query, document)], max_tokens_per_query=4, max_tokens_per_doc=6)
    (cut,) = cut_texts(tokenizer, [query], 4)
    assert query.startswith(cut.text)
    special = len(oracle([""], [""])["input_ids"][0])
    room = len(oracle(cut.text, add_special_tokens=False)["input_ids"]) + 6 + special
    expected = oracle([cut.text], [document], truncation="only_second", max_length=room)
    assert found.input_ids.tolist() == expected["input_ids"][0]
    whole = len(oracle([query], [document])["input_ids"][0])
    assert found.num_truncated_tokens == whole - found.num_tokens
    (same,) = encode_pairs(tokenizer, [(query, document)], max_tokens_per_query=0, max_tokens_per_doc=0)
    assert same.num_tokens == whole


@pytest.mark.parametrize("name", MAKERS)
def test_cut_texts_keep_the_callers_characters(name, folders):
    tokenizer = TextTokenizer(folders[name], build_manifest())
    source = random.Random(name)
    texts = [draw_text(source) for _ in range(60)]
    for most in (1, 3, 17, 40):
        for text, cut in zip(texts, cut_texts(tokenizer, texts, most), strict=True):
            whole, kept = (len(tokenizer.backend.encode(part, add_special_tokens=False)) for part in (text, cut.text))
            assert text.startswith(cut.text)
            assert (cut.num_truncated_tokens == 0) == (whole <= most)
            assert kept <= whole
            # WordPiece splits a word from the left, so what is left of one has the tokens that it had.
            assert name != "bert" or kept == whole - cut.num_truncated_tokens <= most


def test_a_character_of_several_tokens_is_not_split(folders):
    tokenizer = TextTokenizer(folders["roberta"], build_manifest())
    text = "a 😀 b"
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    assert len(encoding) > len(text)
    found = {most: cut_texts(tokenizer, [text], most)[0].text for most in range(1, len(encoding))}
    for most, kept in found.items():
        assert len(tokenizer.backend.encode(kept, add_special_tokens=False)) <= most
    assert {"a", "a 😀"} <= {*found.values()} <= {"a", "a ", "a 😀", "a 😀 "}


def test_of_a_first_character_of_several_tokens_something_is_kept(folders):
    tokenizer = TextTokenizer(folders["roberta"], build_manifest())
    (cut,) = cut_texts(tokenizer, ["😀 b"], 1)
    assert cut.text == "😀"
    assert cut.num_truncated_tokens == len(tokenizer.backend.encode("😀 b", add_special_tokens=False)) - 1


def test_threads_with_different_limits_do_not_disturb_each_other(bert):
    failures = []

    def work(limit):
        for _ in range(30):
            found = encode_pairs(bert, [("pool " * 90, "fox " * 90)] * 4, truncate_to=limit)
            if any(text.num_tokens != limit for text in found):
                failures.append(limit)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (5, 17, 60, 128)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_no_token_at_all_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, build_manifest())
    with pytest.raises(InputError, match=r"has no token \(pair 1\)"):
        encode_pairs(tokenizer, [("a", "a"), ("", "")])
