"""DeBERTa v2 and v3 against transformers: every kind of disentangled attention, embeddings, classifiers, rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architecture_graphs import MAX_LENGTH, TextOracle, check_graphs
from parity_table import TOLERANCE, largest_difference, record
from tiny_heads import widen
from tiny_models import SIZES, VOCAB_SIZE, bert_tokenizer
from transformers import AutoTokenizer, DebertaV2Config

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES

RERANKER = {
    "relative_attention": True,
    "position_buckets": 32,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""config.json of deberta-v3-base and mxbai-rerank-base-v1; 256 buckets there."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DebertaV2ForSequenceClassification": ("sequence", {"num_labels": 1}),
    "v2 with a convolution": ("sequence", {"num_labels": 3, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "projections of positions": ("sequence", {"num_labels": 1, "share_att_key": False, "type_vocab_size": 2}),
    "content to position": ("sequence", {"share_att_key": False, "pos_att_type": ["c2p"], "norm_rel_ebd": "none"}),
    "position to content": ("sequence", {"pos_att_type": "p2c", "max_relative_positions": 100}),
    "distances without buckets": ("sequence", {"position_buckets": -1, "max_relative_positions": 40}),
    "no relative attention": ("sequence", {"relative_attention": False, "position_biased_input": True}),
    "DebertaV2ForTokenClassification": ("token", {"num_labels": 5}),
}


def save(folder: Path, name: str, cls: str) -> Path:
    config = DebertaV2Config(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        **SIZES,
        **(RERANKER | KINDS[name][1]),
    )
    torch.manual_seed(2)
    model = getattr(transformers, cls)(config)
    widen(model)
    model.save_pretrained(folder)
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    return folder


def oracle_of(folder: Path, cls: str) -> TextOracle:
    """Logits of transformers' class, of one text."""
    model = getattr(transformers, cls).from_pretrained(folder, dtype=torch.float32).eval()
    return lambda inputs: model(**inputs).logits[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_deberta_equals_transformers(name: str, tmp_path: Path) -> None:
    family: Any = KINDS[name][0]
    cls = "DebertaV2ForTokenClassification" if family == "token" else "DebertaV2ForSequenceClassification"
    checkpoint, artifact = save(tmp_path / "checkpoint", name, cls), tmp_path / "artifact"
    export_model(checkpoint, artifact)
    difference = check_graphs(artifact, oracle_of(checkpoint, cls), family)
    record("classify" if family == "sequence" else "token_classify", f"deberta {name}", "transformers", difference)
    assert difference <= TOLERANCE


@pytest.mark.slow
def test_deberta_embeds_and_its_reranker_scores_pairs(tmp_path: Path) -> None:
    name, cls = "projections of positions", "DebertaV2ForSequenceClassification"
    checkpoint = save(tmp_path / "checkpoint", name, cls)
    model = transformers.DebertaV2Model.from_pretrained(checkpoint, dtype=torch.float32).eval()
    export_model(checkpoint, tmp_path / "embed", task="embed")
    difference = check_graphs(tmp_path / "embed", lambda inputs: model(**inputs).last_hidden_state[0, 0])
    record("embed", "DebertaV2Model", "transformers", difference)
    assert difference <= TOLERANCE
    export_model(checkpoint, tmp_path / "rerank")
    oracle, tokenizer = oracle_of(checkpoint, cls), AutoTokenizer.from_pretrained(checkpoint)
    query, documents = PROBE_SENTENCES[0], [*PROBE_SENTENCES, " ".join(PROBE_SENTENCES * 2)]
    pairs = [tokenizer(query, document, return_tensors="pt") for document in documents]
    with torch.no_grad():
        expected = np.array([float(oracle(dict(pair)).sigmoid()) for pair in pairs])
    for variant in ("cpu_fp32", "portable_fp32"):
        with PoolingModel.load(tmp_path / "rerank", variant=variant) as ranker:
            found = ranker.score(query, documents)
            assert largest_difference([expected], [found]) <= TOLERANCE
            assert np.array_equal([ranker.score(query, document)[0] for document in documents], found)
