"""Positions of tokens in every layout, and what the layouts answer at their edges."""

from __future__ import annotations

import pytest
import torch

from poolgraph.poolers.layout import PackedLayout, PaddedLayout, UniformLayout


def ids(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int64)


def test_padded_positions_are_the_same_on_either_side() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    found = PaddedLayout(attention_mask=mask).position_ids(ids(4, 5))
    assert [row[kept].tolist() for row, kept in zip(found, mask.bool(), strict=True)] == [
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2, 3, 4],
        [0],
    ]
    assert found.min() == 0  # padding's positions are read from the table too: they must exist
    assert found.max() == 4


def test_uniform_positions_are_one_row_for_the_batch() -> None:
    found = UniformLayout().position_ids(ids(3, 4))
    assert found.tolist() == [[0, 1, 2, 3]]


def test_packed_positions_start_again_at_each_text() -> None:
    layout = PackedLayout(cu_seqlens=torch.tensor([0, 3, 4, 6]))
    assert layout.position_ids(ids(6)).tolist() == [0, 1, 2, 0, 0, 1]


def test_packed_positions_of_one_text() -> None:
    assert PackedLayout(cu_seqlens=torch.tensor([0, 2])).position_ids(ids(2)).tolist() == [0, 1]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_positions_agree_between_layouts(length: int) -> None:
    padded = PaddedLayout(attention_mask=ids(1, length)).position_ids(ids(1, length))[0].tolist()
    uniform = UniformLayout().position_ids(ids(1, length))[0].tolist()
    packed = PackedLayout(cu_seqlens=torch.tensor([0, length])).position_ids(ids(length)).tolist()
    assert padded == uniform == packed == list(range(length))


def test_a_prompt_does_not_move_positions() -> None:
    prompt = torch.tensor([2])
    assert PaddedLayout(attention_mask=ids(1, 4), prompt_length=prompt).position_ids(ids(1, 4)).tolist() == [
        [0, 1, 2, 3]
    ]
    assert UniformLayout(prompt_length=prompt).position_ids(ids(1, 4)).tolist() == [[0, 1, 2, 3]]
    assert PackedLayout(cu_seqlens=torch.tensor([0, 4]), prompt_length=prompt).position_ids(ids(4)).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_counts() -> None:
    rows = torch.zeros(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    layout = PaddedLayout(attention_mask=mask, prompt_length=torch.tensor([1, 0]))
    assert layout.count(rows).tolist() == [[2.0], [2.0]]
    assert layout.weight_count(rows).tolist() == [[5.0], [3.0]]


def test_counts_are_never_zero() -> None:
    rows, everything = torch.zeros(1, 2, 3), torch.tensor([2])
    layouts = [
        (PaddedLayout(attention_mask=ids(1, 2), prompt_length=everything), rows),
        (UniformLayout(prompt_length=everything), rows),
        (PackedLayout(cu_seqlens=torch.tensor([0, 2]), prompt_length=everything), rows[0]),
    ]
    for layout, given in layouts:
        assert layout.count(given).item() == pytest.approx(1e-9)
        assert layout.weight_count(given).item() == pytest.approx(1e-9)


def test_a_masked_token_inside_a_text_is_not_counted() -> None:
    layout = PaddedLayout(attention_mask=torch.tensor([[1, 0, 1]]))
    rows = torch.tensor([[[1.0], [5.0], [3.0]]])
    assert layout.sum(rows).item() == 4.0
    assert layout.max(rows).item() == 3.0
    assert layout.position_ids(ids(1, 3))[0, [0, 2]].tolist() == [0, 1]
