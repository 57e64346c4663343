"""Every pooler in every layout, as the runners feed it, against ten lines of numpy on each text's own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Graph, Limits, Manifest, Pooler, Report, Source, Tensor, Tokenization
from poolgraph.poolers.layout import Layout, PackedLayout, PaddedLayout, UniformLayout
from poolgraph.poolers.pooling import POOLING_METHODS, Pooling
from poolgraph.runtime.manifest_overrides import check_pooler_config
from poolgraph.runtime.runner import Runner
from poolgraph.runtime.runner_packed import PackedRunner
from poolgraph.runtime.runner_padded import PaddedRunner
from poolgraph.runtime.runner_uniform import UniformRunner
from poolgraph.runtime.steps import select_steps
from poolgraph.runtime.tokenizer import EncodedText

LAYOUTS = ("padded_right", "padded_left", "uniform", "packed")
FILLERS = (0.0, 7.0, -1e4, float("nan"), float("inf"), float("-inf"))
"""What may stand in the rows of padding: attention without any key leaves NaN there."""

NUM_TOKENS = 6
INPUTS = {"padded": ("input_ids", "attention_mask"), "uniform": ("input_ids",), "packed": ("input_ids", "cu_seqlens")}
"""By the first word of a layout's name; prompts' lengths in all."""

quickly = settings(max_examples=120, deadline=None, derandomize=True)


def oracle(rows: np.ndarray, mode: str, prompt: int) -> np.ndarray:
    """Pool one text's rows (num_tokens, hidden_size) without its first ``prompt`` tokens."""
    kept, positions = rows[prompt:].astype(np.float64), np.arange(1, len(rows) + 1.0)[prompt:]
    if mode in ("cls", "lasttoken"):
        return rows[-1] if mode == "lasttoken" else rows[prompt if len(kept) else 0]
    if mode == "max":
        return kept.max(0, initial=-np.inf)
    if mode == "sum":
        return kept.sum(0)
    weights = positions if mode == "weightedmean" else np.ones(len(kept))
    divisor = max(weights.sum(), 1e-9) ** (0.5 if mode == "mean_sqrt_len_tokens" else 1)
    return weights @ kept / divisor


@dataclass(frozen=True)
class Batch:
    """Tokenized texts and each one's rows (num_tokens, hidden_size) as a backbone answers; ``filler`` for padding."""

    texts: tuple[EncodedText, ...]
    rows: tuple[np.ndarray, ...]
    with_prompts: bool
    filler: float

    def expected(self, mode: str) -> np.ndarray:
        prompts = [text.prompt_length if self.with_prompts else 0 for text in self.texts]
        return np.stack([oracle(rows, mode, prompt) for rows, prompt in zip(self.rows, prompts, strict=True)])


@st.composite
def batches(draw: st.DrawFn, *, equal: bool = False, prompt_surplus: int = 2) -> Batch:
    """Draw a batch; prompts may cover their whole text, as truncation makes them, and two tokens more."""
    count, longest = draw(st.integers(1, 6)), st.integers(1, 12)
    lengths = [draw(longest)] * count if equal else draw(st.lists(longest, min_size=count, max_size=count))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    offset, hidden_size = draw(st.sampled_from([-3.0, 0.0, 3.0])), draw(st.integers(1, 4))
    texts = tuple(
        EncodedText(
            input_ids=generator.integers(0, NUM_TOKENS, length),
            token_type_ids=None,
            prompt_length=draw(st.integers(0, length + 2)),
        )
        for length in lengths
    )
    rows = tuple((generator.standard_normal((n, hidden_size)) + offset).astype(np.float32) for n in lengths)
    return Batch(texts, rows, draw(st.booleans()), draw(st.sampled_from(FILLERS)))


def batches_for(layout: str) -> st.SearchStrategy[Batch]:
    return batches(equal=layout == "uniform")


def modes() -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(sorted(POOLING_METHODS)), min_size=1, max_size=6, unique=True).map(tuple)


def runner_of(layout: str) -> Runner:
    name, _, side = layout.partition("_")
    padded = PaddedRunner(Tokenization(pad_token_id=0, padding_side=side or "right"))
    return {"uniform": UniformRunner(), "padded": padded, "packed": PackedRunner()}[name]


def feed(batch: Batch, layout: str) -> dict[str, np.ndarray]:
    """The inputs that a runner gives the graph."""
    names = (*INPUTS[layout.partition("_")[0]], "prompt_length")
    tensors = tuple(Tensor(name=name, dtype="int64", shape=("batch_size",)) for name in names)
    graph = Graph(file="", inputs=tensors, outputs=(), raw_output="pooled")
    return dict(runner_of(layout).feed(batch.texts, graph))


def answer(batch: Batch, layout: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The backbone's rows (batch_size, sequence_length, hidden_size), ``filler`` where the mask says padding.

    Packed ones are (num_tokens, hidden_size).
    """
    if layout == "packed":
        return np.concatenate(batch.rows)
    if layout == "uniform":
        return np.stack(batch.rows)
    mask = inputs["attention_mask"].astype(bool)
    rows = np.full((*mask.shape, batch.rows[0].shape[1]), batch.filler, dtype=np.float32)
    rows[mask] = np.concatenate(batch.rows)
    return rows


def lay_out(batch: Batch, layout: str) -> tuple[Layout, torch.Tensor]:
    """The batch as poolers get it."""
    inputs = feed(batch, layout)
    prompts = torch.from_numpy(inputs["prompt_length"]) if batch.with_prompts else None
    rows = torch.from_numpy(answer(batch, layout, inputs))
    if layout == "packed":
        return PackedLayout(cu_seqlens=torch.from_numpy(inputs["cu_seqlens"]), prompt_length=prompts), rows
    if layout == "uniform":
        return UniformLayout(prompt_length=prompts), rows
    return PaddedLayout(attention_mask=torch.from_numpy(inputs["attention_mask"]), prompt_length=prompts), rows


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data(), modes=modes())
@quickly
def test_poolers_equal_the_oracle(layout: str, data: st.DataObject, modes: tuple[str, ...]) -> None:
    batch = data.draw(batches_for(layout))
    found = Pooling(modes)(*lay_out(batch, layout)).numpy()
    expected = np.concatenate([batch.expected(mode) for mode in modes], axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@quickly
def test_positions_count_from_the_start_of_each_text(layout: str, data: st.DataObject) -> None:
    batch = data.draw(batches_for(layout))
    made, rows = lay_out(batch, layout)
    found = made.position_ids(torch.zeros(rows.shape[:-1], dtype=torch.int64))
    expected = np.concatenate([np.arange(len(rows)) for rows in batch.rows])
    if layout != "packed":
        mask = feed(batch, layout).get("attention_mask", np.ones(rows.shape[:2]))
        found = found.expand(rows.shape[:2])[torch.from_numpy(mask.astype(bool))]
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@quickly
def test_counts_run_within_each_text(layout: str, data: st.DataObject) -> None:
    batch = data.draw(batches_for(layout))
    counted = [(text.input_ids % 2).astype(np.int64) for text in batch.texts]
    made, rows = lay_out(batch, layout)
    if layout == "packed":
        given_ids = torch.from_numpy(np.concatenate(counted))
        found = made.running_count(given_ids)
    else:
        mask = feed(batch, layout).get("attention_mask", np.ones(rows.shape[:2])).astype(bool)
        given_ids = torch.ones(mask.shape, dtype=torch.int64)
        given_ids[torch.from_numpy(mask)] = torch.from_numpy(np.concatenate(counted))
        found = made.running_count(given_ids)
        assert not found[torch.from_numpy(~mask)].any()
        found = found[torch.from_numpy(mask)]
    assert found.tolist() == np.concatenate([np.cumsum(one) * one for one in counted]).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@quickly
def test_all_pooling_returns_each_text_its_own_rows(layout: str, data: st.DataObject) -> None:
    batch = data.draw(batches_for(layout))
    split = runner_of(layout).split_tokens(answer(batch, layout, feed(batch, layout)), batch.texts)
    for found, rows in zip(split, batch.rows, strict=True):
        assert np.array_equal(found, rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    data=st.data(),
    step_tag_id=st.none() | st.integers(0, NUM_TOKENS - 1),
    columns=st.none() | st.lists(st.integers(0, 3), max_size=5),
)
@quickly
def test_step_pooling_returns_the_rows_of_the_tag_and_the_columns_asked_for(
    layout: str, data: st.DataObject, step_tag_id: int | None, columns: list[int] | None
) -> None:
    batch = data.draw(batches_for(layout))
    width = batch.rows[0].shape[1]
    columns = None if columns is None else [column % width for column in columns]
    split = runner_of(layout).split_tokens(answer(batch, layout, feed(batch, layout)), batch.texts)
    for index, text in enumerate(batch.texts):
        found = select_steps(split[index], text.input_ids, step_tag_id=step_tag_id, columns=columns)
        expected = [
            [float(row[column]) for column in (range(width) if columns is None else columns)]
            for row, token in zip(batch.rows[index], text.input_ids, strict=True)
            if step_tag_id in (None, token)
        ]
        assert found.tolist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@quickly
def test_runners_feed_each_text_its_own_ids_and_pad_on_their_side(layout: str, data: st.DataObject) -> None:
    batch = data.draw(batches_for(layout))
    tagged = replace(batch, texts=tuple(replace(text, input_ids=text.input_ids + 1) for text in batch.texts))
    inputs = feed(tagged, layout)
    if layout.startswith("padded"):
        assert inputs["attention_mask"][:, -1 if layout == "padded_left" else 0].all()
    rows = np.split(inputs["input_ids"], inputs["cu_seqlens"][1:-1]) if layout == "packed" else inputs["input_ids"]
    for row, text in zip(rows, tagged.texts, strict=True):
        kept = row[row > 0]
        assert kept.tolist() == text.input_ids.tolist()
    assert inputs["prompt_length"].tolist() == [text.prompt_length for text in batch.texts]


def manifest_of(*pooling: str) -> Manifest:
    return Manifest(
        poolgraph_version="0",
        created="",
        source=Source(model="tiny", revision=None, content_hash=""),
        architecture="TinyModel",
        tasks=("embed",),
        default_task="embed",
        pooler=Pooler(pooling=pooling, embedding_size=3),
        limits=Limits(max_model_len=8, vocab_size=NUM_TOKENS),
        tokenization=Tokenization(pad_token_id=0),
        variants=(),
        report=Report(reference=""),
        files={},
    )


@pytest.mark.parametrize(
    ("name", "mode", "definition"),
    [("CLS", "cls", lambda x: x[0]), ("LAST", "lasttoken", lambda x: x[-1]), ("MEAN", "mean", lambda x: x.mean(0))],
)
def test_names_of_vllm_are_these_methods(name: str, mode: str, definition: Callable[[np.ndarray], np.ndarray]) -> None:
    """The reference page: the first row, the last row, the sum of all of the prompt's rows by their number."""
    rows = np.random.default_rng(1).standard_normal((7, 5))
    np.testing.assert_allclose(oracle(rows, mode, 0), definition(rows))
    check_pooler_config(PoolerConfig(pooling_type=name), manifest_of(mode))
    for others in (*({other} for other in POOLING_METHODS if other != mode), {mode, "max"}):
        with pytest.raises(InputError, match=f"{name} was asked for"):
            check_pooler_config(PoolerConfig(pooling_type=name), manifest_of(*others))
