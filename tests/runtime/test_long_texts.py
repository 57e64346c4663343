import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_artifact import VOCABULARY, build_manifest, build_tokenizer

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Pooler
from poolgraph.runtime.long_texts import chunk_ids, chunk_texts
from poolgraph.runtime.tokenizer import TextTokenizer

LIMIT = 16


def make_tokenizer(tmp_path_factory, **changes):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder, build_manifest(**changes))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory)


def words(ids) -> list[str]:
    return [VOCABULARY[index] for index in ids]


@given(
    number=st.integers(1, 70), overlap=st.integers(0, 9), prompt=st.sampled_from(["", "w8 ", "w8 w9 "]), data=st.data()
)
@settings(max_examples=100, deadline=None)
def test_windows_cover_the_text(tokenizer, number, overlap, prompt, data):
    text = data.draw(st.lists(st.sampled_from(VOCABULARY[4:-1]), min_size=number, max_size=number))
    (chunked,) = chunk_texts(tokenizer, [" ".join(text)], prompt=prompt, overlap=overlap)
    head = ["[CLS]", *prompt.split()]
    assert words(chunked.whole.input_ids) == [*head, *text, "[SEP]"]
    found = []
    for window, weight in zip(chunked.windows, chunked.weights, strict=True):
        shown = words(window.input_ids)
        assert len(shown) <= LIMIT
        assert shown[: len(head)] == head
        assert shown[-1] == "[SEP]"
        body = shown[len(head) : -1]
        assert len(chunked.windows) == 1 or weight == len(body)
        found += body if not found else body[overlap:]
        assert not found or body[:overlap] == found[len(found) - len(body) :][:overlap]
    assert found == text
    fits = len(head) + number + 1 <= LIMIT
    assert (len(chunked.windows) == 1) == fits
    assert (chunked.report is None) == fits


def test_a_text_that_fits_has_its_usual_tokens(tokenizer):
    (chunked,) = chunk_texts(tokenizer, ["w1 w2"], prompt="w3 ")
    (expected,) = tokenizer.encode(["w1 w2"], prompt="w3 ")
    np.testing.assert_array_equal(chunked.windows[0].input_ids, expected.input_ids)
    raw = np.array([[0.1, 0.2]], dtype=np.float32)
    assert chunked.average(raw).tobytes() == raw.tobytes()


def test_the_average_is_by_token_count(tokenizer):
    (chunked,) = chunk_texts(tokenizer, ["w1 " * 20])
    raw = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(chunked.average(raw), [14 / 20, 6 / 20], rtol=1e-6)


def test_windows_know_their_prompt_where_the_pooler_leaves_it_out(tmp_path_factory):
    pooler = Pooler(pooling=("mean",), include_prompt=False, embedding_size=8)
    tokenizer = make_tokenizer(tmp_path_factory, pooler=pooler)
    (chunked,) = chunk_texts(tokenizer, ["w1 " * 30], prompt="w8 w9 ")
    assert {window.prompt_length for window in chunked.windows} == {3}


def test_a_prompt_that_does_not_end_in_a_space_is_before_each_window(tokenizer):
    (chunked,) = chunk_texts(tokenizer, [" w1" * 30], prompt="w8 w9")
    assert [words(window.input_ids)[:4] for window in chunked.windows] == [["[CLS]", "w8", "w9", "w1"]] * 3
    assert chunked.weights.tolist() == [12, 12, 6]


def test_no_room_beside_the_overlap(tokenizer):
    with pytest.raises(InputError, match=r"room for 12 tokens of a text beside the prompt.*overlap of 12 must be"):
        chunk_texts(tokenizer, ["w1 " * 30], prompt="w8 w9 ", overlap=12)


def test_token_ids_are_cut_as_they_are(tokenizer):
    ids = [*range(6, 16), *range(16, 6, -1), *range(6, 16)]
    chunked = chunk_ids(tokenizer, ids, overlap=4)
    assert [window.input_ids.tolist() for window in chunked.windows] == [ids[:16], ids[12:28], ids[24:]]
    assert (chunked.weights.tolist(), chunked.whole.input_ids.tolist()) == ([16, 16, 6], ids)
    assert chunked.whole.num_truncated_tokens == 0


def test_token_ids_that_fit_stay_whole(tokenizer):
    chunked = chunk_ids(tokenizer, [6] * 16, overlap=4)
    assert (len(chunked.windows), chunked.report) == (1, None)


@pytest.mark.parametrize(("ids", "message"), [([], "no token"), ([6] * 40 + [10**6], "vocabulary")])
def test_token_ids_that_are_refused(tokenizer, ids, message):
    with pytest.raises(InputError, match=message):
        chunk_ids(tokenizer, ids)


def test_messages_name_the_text(tokenizer):
    with pytest.raises(InputError, match="text 4"):
        chunk_texts(tokenizer, ["\udc80"], first_index=4)
