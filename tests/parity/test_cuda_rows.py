"""Rows of the support table lowered for CUDA: in numpy's float32 the portable graph's answers, in both layouts; in 16
bits close to them; and nothing that would leave the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from cuda_graphs import CudaGraphs, hide_tokens, random_texts
from support_oracles import first, rows_of, save_classic, saved
from support_row import SupportRow, embed
from support_rows import SUPPORT_ROWS
from tiny_models import tame

from poolgraph.graphs.check_cuda import check_cuda
from poolgraph.graphs.fuse_bias_products import has_bias_products
from poolgraph.graphs.manifest import CUDA_OPERATORS
from poolgraph.runtime.compare import ACTIVATED, THRESHOLDS, cosine_rows

TOLERANCE = 1e-5
"""Of the largest expected number."""

PRECISIONS = {"padded": ("fp16", "bf16"), "packed": ("fp16",)}
"""What is offered by layout."""

IN_CI = (
    "embed BertModel",
    "embed Gemma2Model",
    "embed LlamaModel",
    "embed Qwen2Model is_causal: false",
    "embed Qwen3Model",
    "embed NomicBertModel remote-code layout",
    "embed NomicBertModel dynamic NTK",
    "embed NomicBertModel experts",
    "embed ModernBertModel",
    "embed NewModel fixed NTK",
    "embed XLMRobertaModel default adapter",
    "embed Gemma3TextModel",
    "embed LlamaBidirectionalModel",
    "classify JambaForSequenceClassification",
    "classify GPT2ForSequenceClassification",
    "score DebertaV2ForSequenceClassification",
    "score BertForSequenceClassification",
    "reward Qwen2ForProcessRewardModel STEP",
    "colbert HF_ColBERT",
    "tokens RobertaForTokenClassification",
)
"""Rows that every run of the tests has: each form of a layer, of pooling and of a head."""

ALL_ROWS = "POOLGRAPH_ALL_ROWS"
"""The variable that, set to anything, asks for every row: three minutes."""

UNLISTED = ("MPNetModel", "DistilBertModel")
"""Encoders that the support table has no row of."""

ROWS = [
    *(row for row in SUPPORT_ROWS if os.environ.get(ALL_ROWS) or row.name in IN_CI),
    *(embed(name, "", saved(save_classic(name, name), first(rows_of(name)))) for name in UNLISTED),
]

IN_HALF = (
    "embed BertModel",
    "embed ModernBertModel",
    "embed Qwen3Model",
    "embed NomicBertModel remote-code layout",
    "embed Gemma3TextModel",
    "classify JambaForSequenceClassification",
    "score DebertaV2ForSequenceClassification",
)
"""Rows whose graphs in 16 bits are evaluated, a form of attention or of layer each."""

HALF_LENGTHS = (19, 1, 40)

UNCERTAIN = "classify JambaForSequenceClassification"
"""The row whose wide random weights magnify what float32 rounds: torch's own answers are 2e-5 from those in float64."""


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_answers_of_cuda_graphs(row: SupportRow, tmp_path: Path) -> None:
    row.make(tmp_path / "checkpoint")
    if row.name == UNCERTAIN:
        tame(tmp_path / "checkpoint" / "model.safetensors")
    graphs = CudaGraphs(tmp_path / "checkpoint", row.family, **row.options)
    texts = random_texts()
    expected = graphs.expected(texts, tmp_path / "portable")
    scale = max(np.abs(rows).max() for rows in expected)
    for layout in layouts(graphs):
        found = graphs.answer(layout, texts)
        difference = max(np.abs(one - other).max() for one, other in zip(expected, found, strict=True))
        assert difference <= TOLERANCE * scale, (layout, difference / scale)
        for precision in PRECISIONS[layout]:
            assert check_cuda(graphs.lowered(layout, precision)) == [], (layout, precision)


def layouts(graphs: CudaGraphs) -> Sequence[str]:
    return ("padded", "packed") if graphs.fits_packed else ("padded",)


def forms(graphs: CudaGraphs) -> Iterator[tuple[str, str, str | None]]:
    """Layouts, precisions and operators of the graphs in 16 bits: with poolgraph's own where those have a place."""
    for layout in layouts(graphs):
        for precision in PRECISIONS[layout]:
            yield layout, precision, None
            own = graphs.lowered(layout, precision, CUDA_OPERATORS)
            if has_bias_products(own):
                assert check_cuda(own) == [], (layout, precision)
                yield layout, precision, CUDA_OPERATORS


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_HALF)
def test_the_answers_of_cuda_graphs_in_16_bits(name: str, tmp_path: Path) -> None:
    row = next(row for row in SUPPORT_ROWS if row.name == name)
    row.make(tmp_path / "checkpoint")
    tame(tmp_path / "checkpoint" / "model.safetensors")
    graphs = CudaGraphs(tmp_path / "checkpoint", row.family, **row.options)
    texts = random_texts(HALF_LENGTHS)
    expected = np.stack(graphs.expected(texts, tmp_path / "portable")).astype(np.float64)
    for layout, precision, operators in forms(graphs):
        found = np.stack(graphs.answer(layout, texts, precision, operators))
        lowest = cosine_rows(expected, found.astype(np.float64)).min()
        difference = np.abs(expected - found).max() / np.abs(expected).max()
        assert lowest >= THRESHOLDS[precision].min_cosine, (layout, precision, operators, lowest)
        assert difference <= ACTIVATED[precision].max_difference, (layout, precision, operators, difference)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colbert HF_ColBERT", "colbert ColBERTModernBertModel"])
def test_tokens_that_none_attends_to(name: str, tmp_path: Path) -> None:
    """Those of a ColBERT query's expansion, in front of it or behind; their own rows are answers."""
    row = next(row for row in SUPPORT_ROWS if row.name == name)
    row.make(tmp_path / "checkpoint")
    graphs = CudaGraphs(tmp_path / "checkpoint", row.family, **row.options)
    assert not graphs.fits_packed
    texts = hide_tokens(random_texts())
    expected = graphs.expected(texts, tmp_path / "portable")
    found = graphs.answer("padded", texts)
    difference = max(np.abs(one - other).max() for one, other in zip(expected, found, strict=True))
    assert difference <= TOLERANCE * max(np.abs(rows).max() for rows in expected)
