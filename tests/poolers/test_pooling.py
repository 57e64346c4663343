"""Pooling in every layout against a few lines of numpy on each text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poolgraph.poolers.layout import Layout, PackedLayout, PaddedLayout, UniformLayout
from poolgraph.poolers.pooling import POOLING_METHODS, Pooling

HIDDEN_SIZE = 3

quickly = settings(max_examples=60, deadline=None, derandomize=True)


def oracle(rows: np.ndarray, mode: str, prompt: int) -> np.ndarray:
    """Pool one text's rows (num_tokens, hidden_size) without its first ``prompt`` tokens."""
    kept, positions = rows[prompt:].astype(np.float64), np.arange(prompt + 1, len(rows) + 1)[:, None]
    return {
        "cls": lambda: kept[0],
        "max": lambda: kept.max(0),
        "sum": lambda: kept.sum(0),
        "mean": lambda: kept.sum(0) / len(kept),
        "mean_sqrt_len_tokens": lambda: kept.sum(0) / np.sqrt(len(kept)),
        "weightedmean": lambda: (kept * positions).sum(0) / positions.sum(),
        "lasttoken": lambda: kept[-1],
    }[mode]()


@dataclass(frozen=True)
class Batch:
    """Texts' rows, each text's prompt (None for poolers that keep the prompt) and what fills the padding."""

    texts: Sequence[np.ndarray]
    prompts: Sequence[int] | None
    filler: float

    def prompt_length(self) -> torch.Tensor | None:
        return None if self.prompts is None else torch.tensor(self.prompts)

    def expected(self, mode: str) -> np.ndarray:
        return np.stack([oracle(t, mode, p) for t, p in zip(self.texts, self.prompts or [0] * 99, strict=False)])


@st.composite
def batches(draw: st.DrawFn, *, equal: bool = False) -> Batch:
    count = draw(st.integers(1, 5))
    longest = st.integers(1, 7)
    lengths = [draw(longest)] * count if equal else draw(st.lists(longest, min_size=count, max_size=count))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Values below zero throughout: a maximum that lets padding or a prompt in is then seen at once.
    texts = [-1 - np.abs(generator.standard_normal((length, HIDDEN_SIZE))).astype(np.float32) for length in lengths]
    prompts = [draw(st.integers(0, length - 1)) for length in lengths] if draw(st.booleans()) else None
    return Batch(texts, prompts, draw(st.sampled_from([0.0, 7.0, -1e4])))


def pad(batch: Batch, side: str) -> tuple[Layout, torch.Tensor]:
    width = max(len(text) for text in batch.texts) + 1  # one more than needed: a text may be all but its padding
    rows = np.full((len(batch.texts), width, HIDDEN_SIZE), batch.filler, np.float32)
    mask = np.zeros((len(batch.texts), width), np.int64)
    for index, text in enumerate(batch.texts):
        place = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        rows[index, place], mask[index, place] = text, 1
    layout = PaddedLayout(attention_mask=torch.from_numpy(mask), prompt_length=batch.prompt_length())
    return layout, torch.from_numpy(rows)


def pack(batch: Batch) -> tuple[Layout, torch.Tensor]:
    starts = torch.tensor(np.cumsum([0, *map(len, batch.texts)]))
    layout = PackedLayout(cu_seqlens=starts, prompt_length=batch.prompt_length())
    return layout, torch.from_numpy(np.concatenate(batch.texts))


def check(batch: Batch, mode: str, layout: Layout, rows: torch.Tensor) -> None:
    before = rows.clone()
    found = Pooling((mode,))(layout, rows).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, batch.expected(mode), rtol=2e-5, atol=1e-6)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", POOLING_METHODS)
@given(batch=batches())
@quickly
def test_padded(mode: str, side: str, batch: Batch) -> None:
    check(batch, mode, *pad(batch, side))


@pytest.mark.parametrize("mode", POOLING_METHODS)
@given(batch=batches(equal=True))
@quickly
def test_uniform(mode: str, batch: Batch) -> None:
    check(batch, mode, UniformLayout(prompt_length=batch.prompt_length()), torch.from_numpy(np.stack(batch.texts)))


@pytest.mark.parametrize("mode", POOLING_METHODS)
@given(batch=batches())
@quickly
def test_packed(mode: str, batch: Batch) -> None:
    check(batch, mode, *pack(batch))


@given(batch=batches(), modes=st.lists(st.sampled_from(sorted(POOLING_METHODS)), min_size=1, max_size=6, unique=True))
@quickly
def test_several_modes_stand_side_by_side_in_their_order(batch: Batch, modes: list[str]) -> None:
    expected = np.concatenate([batch.expected(mode) for mode in modes], axis=1)
    for layout, rows in (pad(batch, "left"), pad(batch, "right"), pack(batch)):
        found = Pooling(tuple(modes))(layout, rows).numpy()
        assert found.shape == (len(batch.texts), len(modes) * HIDDEN_SIZE)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "mean", "mean_sqrt_len_tokens", "weightedmean"])
@given(batch=batches(equal=True))
@quickly
def test_a_prompt_that_leaves_no_token_gives_a_finite_answer_and_the_same_in_every_layout(
    mode: str, batch: Batch
) -> None:
    nothing_left = Batch(batch.texts, [len(text) for text in batch.texts], 0.0)
    uniform = UniformLayout(prompt_length=nothing_left.prompt_length()), torch.from_numpy(np.stack(batch.texts))
    answers = [Pooling((mode,))(*made).numpy() for made in (uniform, pad(nothing_left, "right"), pack(nothing_left))]
    assert np.isfinite(answers[0]).all()
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=2e-5, atol=1e-6)


def test_half_precision_rows_are_pooled_in_float32() -> None:
    rows = torch.full((1, 4096, 1), 1.0, dtype=torch.float16)
    mask = torch.ones(1, 4096, dtype=torch.int64)
    rows[0, 0] = 0.5
    found = Pooling(("mean",))(PaddedLayout(attention_mask=mask), rows)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(4095.5 / 4096, abs=1e-7)


def test_padding_that_is_not_finite_is_seen_by_no_taking_mode() -> None:
    rows = torch.tensor([[[1.0], [2.0], [float("nan")]]])
    layout = PaddedLayout(attention_mask=torch.tensor([[1, 1, 0]]))
    assert Pooling(("cls", "max", "lasttoken"))(layout, rows).tolist() == [[1.0, 2.0, 2.0]]


def test_modes_are_those_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling as Reference

    assert set(POOLING_METHODS) == {*Reference.POOLING_MODES, "sum"}, "and sum, of SpladePooling"
