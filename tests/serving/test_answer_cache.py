from dataclasses import replace

import numpy as np
import pytest

from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.serving.answer_cache import AnswerCache, make_key

TEXT = EncodedText(input_ids=np.array([2, 5, 3]), token_type_ids=np.array([0, 0, 0]))
ROW = np.arange(6, dtype=np.float32)


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


@pytest.mark.parametrize(
    "other",
    [
        (b"b", "sequence", TEXT),
        (b"a", "token", TEXT),
        (b"a", "sequence", replace(TEXT, input_ids=np.array([2, 5, 4]))),
        (b"a", "sequence", replace(TEXT, input_ids=np.array([2, 5]))),
        (b"a", "sequence", replace(TEXT, token_type_ids=np.array([0, 0, 1]))),
        (b"a", "sequence", replace(TEXT, token_type_ids=None)),
        (b"a", "sequence", replace(TEXT, token_type_ids=None, attended=np.array([0, 0, 0]))),
        (b"a", "sequence", replace(TEXT, prompt_length=1)),
    ],
)
def test_what_changes_an_answer_changes_its_key(other):
    assert make_key(*other) != make_key(b"a", "sequence", TEXT)


def test_equal_texts_share_a_key():
    copy = replace(TEXT, input_ids=TEXT.input_ids.copy(), num_truncated_tokens=9)
    assert make_key(b"a", "sequence", copy) == make_key(b"a", "sequence", TEXT)


def test_answers_are_copies_that_nobody_writes_to():
    cache, row = AnswerCache(1 << 16), ROW.copy()
    cache.keep(key(1), row)
    row[:] = 0
    found, missing = cache.find([key(1), key(2)])
    assert missing is None
    np.testing.assert_array_equal(found, ROW)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_those_used_longest_ago_go_first():
    cache = AnswerCache(10 * (256 + ROW.nbytes))
    for number in range(10):
        cache.keep(key(number), ROW)
    full = cache.size
    cache.find([key(0)])
    cache.keep(key(10), ROW)
    assert [row is not None for row in cache.find([key(0), key(1), key(2), key(10)])] == [True, False, True, True]
    assert cache.size == full


def test_an_answer_twice_counts_once_and_a_huge_one_not_at_all():
    cache = AnswerCache(1 << 14)
    cache.keep(key(1), ROW)
    size = cache.size
    cache.keep(key(1), ROW)
    cache.keep(key(2), np.zeros(4000, dtype=np.float32))
    assert cache.size == size
    assert cache.find([key(2)]) == [None]
