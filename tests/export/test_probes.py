"""Probe texts: the lengths where graphs go wrong, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from poolgraph.export.probes import (
    EDGES,
    LONGEST_ANSWERED,
    PROBE_SENTENCES,
    build_longest,
    build_probe_pairs,
    build_probe_texts,
    choose_lengths,
)


def count_words(texts: Sequence[str]) -> list[int]:
    """Two special tokens and a token a word."""
    return [2 + len(text.split()) for text in texts]


def count_letters(texts: Sequence[str]) -> list[int]:
    """Two special tokens and a token a letter."""
    return [2 + len(text.replace(" ", "")) for text in texts]


def test_lengths_have_every_edge_and_its_neighbours() -> None:
    lengths = choose_lengths(512)
    assert {1, 2, 511, 512} <= set(lengths)
    for edge in EDGES:
        if edge < 512:
            assert {edge - 1, edge, edge + 1} <= set(lengths)
    assert any(length % 2 for length in lengths)
    assert list(lengths) == sorted(set(lengths))


@pytest.mark.parametrize("limit", [1, 2, 3, 16, 77, 128, 514])
def test_lengths_stay_within_the_limit_and_reach_it(limit: int) -> None:
    lengths = choose_lengths(limit)
    assert lengths[-1] == limit
    assert lengths[0] >= 1


def test_long_limits_are_probed_up_to_a_bound() -> None:
    assert choose_lengths(8192)[-1] == 600
    assert choose_lengths(8192, longest=40)[-1] == 40


@pytest.mark.parametrize("count", [count_words, count_letters])
def test_the_longest_is_beyond_the_limit_or_as_long_as_any_that_is_answered(count) -> None:
    for limit in (3, 512, LONGEST_ANSWERED):
        assert count([build_longest(count, limit)])[0] > limit
        assert sum(count(build_probe_pairs(limit)[-1])) > limit
    for limit in (LONGEST_ANSWERED + 1, 8192, 10**6):
        assert LONGEST_ANSWERED - 9 < count([build_longest(count, limit)])[0] <= LONGEST_ANSWERED
        assert sum(count_words(build_probe_pairs(limit)[-1])) <= LONGEST_ANSWERED


@pytest.mark.parametrize("count", [count_words, count_letters])
def test_texts_reach_their_lengths_and_never_pass_them(count) -> None:
    lengths = choose_lengths(128)
    texts = build_probe_texts(count, lengths)
    found = count(texts[: -len(PROBE_SENTENCES)])
    assert max(found) == 128
    assert {length for length in lengths if length >= 3} <= set(found)


def test_texts_end_with_the_sentences_and_an_empty_text_and_repeat_nothing() -> None:
    texts = build_probe_texts(count_words, (16, 32))
    assert set(PROBE_SENTENCES) <= set(texts)
    assert "" in texts
    assert len(set(texts)) == len(texts)
    assert texts == build_probe_texts(count_words, (16, 32))


def test_a_tokenizer_that_gives_no_token_for_short_words_ends_the_search() -> None:
    def count(texts: Sequence[str]) -> list[int]:
        return [2 for _ in texts]

    assert build_probe_texts(count, (3, 16))
