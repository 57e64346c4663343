"""DeBERTa v2 and v3 against transformers: every kind of disentangled attention, embeddings, classifiers, rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architecture_graphs import check_graphs
from native_graphs import FLOAT32
from parity_table import TOLERANCE, largest_difference, record
from tiny_deberta import KINDS, oracle_of, save
from transformers import AutoTokenizer

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES

pytestmark = pytest.mark.usefixtures("short_probes")

ELSEWHERE = ("DebertaV2ForSequenceClassification", "projections of positions")
"""The row of the support table, which goes to 640 tokens, and the one that embeds and scores below."""
LONGEST = 300
"""Tokens of the texts here: beyond the first of the last buckets, and beyond the largest distance of each kind."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ELSEWHERE])
def test_deberta_equals_transformers(name: str, tmp_path: Path) -> None:
    family: Any = KINDS[name][0]
    cls = "DebertaV2ForTokenClassification" if family == "token" else "DebertaV2ForSequenceClassification"
    checkpoint, artifact = save(tmp_path / "checkpoint", name, cls, LONGEST), tmp_path / "artifact"
    export_model(checkpoint, artifact)
    difference = check_graphs(artifact, oracle_of(checkpoint, cls), family, LONGEST)
    record("classify" if family == "sequence" else "token_classify", f"deberta {name}", "transformers", difference)
    assert difference <= TOLERANCE


@pytest.mark.slow
def test_deberta_embeds_and_its_reranker_scores_pairs(tmp_path: Path) -> None:
    name, cls = "projections of positions", "DebertaV2ForSequenceClassification"
    checkpoint = save(tmp_path / "checkpoint", name, cls, LONGEST)
    model = transformers.DebertaV2Model.from_pretrained(checkpoint, dtype=torch.float32).eval()
    export_model(checkpoint, tmp_path / "embed", task="embed")
    difference = check_graphs(
        tmp_path / "embed", lambda inputs: model(**inputs).last_hidden_state[0, 0], longest=LONGEST
    )
    record("embed", "DebertaV2Model", "transformers", difference)
    assert difference <= TOLERANCE
    export_model(checkpoint, tmp_path / "rerank")
    oracle, tokenizer = oracle_of(checkpoint, cls), AutoTokenizer.from_pretrained(checkpoint)
    query, documents = PROBE_SENTENCES[0], [*PROBE_SENTENCES, " ".join(PROBE_SENTENCES * 2)]
    pairs = [tokenizer(query, document, return_tensors="pt") for document in documents]
    with torch.no_grad():
        expected = np.array([float(oracle(dict(pair)).sigmoid()) for pair in pairs])
    for variant in FLOAT32:
        with PoolingModel.load(tmp_path / "rerank", variant=variant) as ranker:
            found = ranker.score(query, documents)
            assert largest_difference([expected], [found]) <= TOLERANCE
            assert np.array_equal([ranker.score(query, document)[0] for document in documents], found)
