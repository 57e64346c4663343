"""Every row of the support table: export, graphs to 640 tokens in every layout, and the task's answers of texts."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from architecture_graphs import MAX_LENGTH, TextOracle, check_graphs
from packed_graphs import check_packed
from parity_table import TOLERANCE, largest_difference, make_texts
from support_row import FINISH, SupportRow
from support_rows import SUPPORT_ROWS
from support_table import check_recorded
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.runtime.score_template import ScoreTemplate

pytestmark = pytest.mark.usefixtures("short_probes")

MAX_SECONDS = 30.0
"""Of an export, of this process's processor time: what else runs on the machine does not count."""
LONGEST = 610
"""Tokens of the longest texts."""


@pytest.mark.slow
@pytest.mark.parametrize("row", SUPPORT_ROWS, ids=lambda row: row.name)
def test_support_row(row: SupportRow, tmp_path: Path) -> None:
    checkpoint, artifact = tmp_path / "checkpoint", tmp_path / "artifact"
    oracle = row.make(checkpoint)
    start = time.process_time()
    export_model(checkpoint, artifact, **row.options)
    assert time.process_time() - start < MAX_SECONDS
    differences = {f"1 to {MAX_LENGTH} tokens, alone, batched, padded": check_graphs(artifact, oracle, row.family)}
    if row.packed:
        packed = check_packed(checkpoint, tmp_path / "packed", oracle, row.family, **row.options)
        differences["packed"] = packed
    differences["texts"] = check_texts(row, artifact, oracle)
    if row.task == "score":
        differences["pairs"] = check_pairs(row, artifact, oracle)
    assert max(differences.values()) <= TOLERANCE, differences
    check_recorded(row.name, differences)


def finished(row: SupportRow, oracle: TextOracle, checkpoint: Path, texts: list[tuple[str, ...]]) -> list[np.ndarray]:
    """The oracle's answers of texts or pairs, by the checkpoint's own tokenizer."""
    tokenizer = (AutoTokenizer if row.rebuilt else PreTrainedTokenizerFast).from_pretrained(checkpoint)
    answers = []
    with torch.no_grad():
        for text in texts:
            inputs = dict(tokenizer(*text, return_tensors="pt"))
            inputs.pop("attention_mask")
            answers.append(FINISH[row.finish](oracle(inputs), inputs["input_ids"][0]).float().numpy())
    return answers


def check_texts(row: SupportRow, artifact: Path, oracle: TextOracle) -> float:
    """Check finished answers of the task's method, and their bits alone and in another order."""
    with PoolingModel.load(artifact) as model:
        assert model.manifest.limits.max_model_len >= MAX_LENGTH
        texts = make_texts(model.count_tokens, LONGEST, tag=row.tag)
        assert max(model.count_tokens(texts)) >= 600
        ask = getattr(model, row.method)
        found = list(ask(texts))
        expected = finished(row, oracle, artifact.with_name("checkpoint"), [(text,) for text in texts])
        assert len({answer.tobytes() for answer in expected}) > len(texts) / 2, "the texts' answers hardly differ"
        assert all(np.array_equal(*pair) for pair in zip(ask(texts[::-1])[::-1], found, strict=True))
        alone = [ask([text])[0] for text in texts]
        assert all(np.array_equal(*pair) for pair in zip(alone, found, strict=True))
    scale = max(1.0, *(float(np.abs(answer).max(initial=0)) for answer in expected))
    return largest_difference(expected, found) / scale


def check_pairs(row: SupportRow, artifact: Path, oracle: TextOracle) -> float:
    """Check scores of a query with documents, put together by the tokenizer or by the row's template."""
    query, documents = PROBE_SENTENCES[0], [*PROBE_SENTENCES[1:6], " ".join(PROBE_SENTENCES[:3])]
    with PoolingModel.load(artifact) as model:
        found = np.asarray(model.score(query, documents))
        scoring = model.manifest.scoring
    assert scoring is not None
    pairs: list[tuple[str, ...]] = [(query, document) for document in documents]
    if scoring.template is not None:
        template = ScoreTemplate.parse((artifact / scoring.template).read_text())
        pairs = [(template.render(*pair),) for pair in pairs]
    expected = np.concatenate(finished(row, oracle, artifact.with_name("checkpoint"), pairs))
    return largest_difference([expected], [found])
