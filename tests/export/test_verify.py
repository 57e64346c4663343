"""Batches of verification: texts of unlike lengths together, at little cost."""

from __future__ import annotations

import pytest

from poolgraph.export.probes import choose_lengths
from poolgraph.export.verify import MIXED_BATCH, mix_lengths, split_sides


@pytest.mark.parametrize("num_texts", [1, 2, 5, 6, 7, 12, 13, 46, 60, 61])
def test_every_text_is_in_one_batch_of_few(num_texts):
    batches = mix_lengths([(7 * number) % num_texts for number in range(num_texts)])
    assert sorted(index for batch in batches for index in batch) == list(range(num_texts))
    assert all(0 < len(batch) <= MIXED_BATCH for batch in batches)


def test_short_texts_follow_much_padding_and_few_batches_are_long():
    lengths = [*choose_lengths(8192), *range(8, 40, 3)]
    batches = [sorted(lengths[index] for index in batch) for batch in mix_lengths(lengths)]
    assert all(batch[0] < batch[-1] / 2 for batch in batches)
    assert sum(batch[-1] > 512 for batch in batches) <= 2
    padded = sum(len(batch) * batch[-1] for batch in batches)
    assert padded < 2.5 * sum(lengths)


def test_each_text_is_padded_on_one_side_and_lengths_are_on_both():
    lengths = [7, 3, 9, 1, 5, 5, 2]
    sides = split_sides(lengths)
    assert sorted(sides["right"] + sides["left"]) == list(range(len(lengths)))
    assert [sorted(lengths[index] for index in sides[side]) for side in ("right", "left")] == [[1, 3, 5, 9], [2, 5, 7]]
