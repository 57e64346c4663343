"""SPLADE of every masked language model of transformers: answers as sentence-transformers', or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_table import TOLERANCE, largest_difference
from tiny_heads import plan_of
from tiny_models import SIZES, VOCAB_SIZE, few_calibration_texts
from tiny_sparse import encode, save_masked
from transformers.activations import ACT2FN

from poolgraph import PoolingModel, export_model
from poolgraph.errors import PoolgraphError
from poolgraph.export.head_activations import ACTIVATION_WORDS
from poolgraph.runtime.compare import cosine_rows

pytestmark = pytest.mark.usefixtures("short_probes")

ONE = {**SIZES, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 130, "pad_token_id": 0, "num_hidden_layers": 1}
OFFSET = {**ONE, "pad_token_id": 1}
ODD = {**ONE, "embedding_size": 21}
"""The head is as wide as the embeddings; at an odd width kernels show whether a row's bits depend on its place."""

DISENTANGLED = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
ESM = {"token_dropout": False, "mask_token_id": 4, "position_embedding_type": "absolute"}

HEADS: Mapping[str, Mapping[str, Any]] = {
    "Albert": {**ODD, "hidden_act": "gelu_new"},
    "Camembert": {**OFFSET, "hidden_act": "silu"},
    "Data2VecText": OFFSET,
    "DebertaV2": {**ONE, **DISENTANGLED},
    "DebertaV2 of its own": {**ONE, **DISENTANGLED, "legacy": False},
    "Electra": ODD,
    "Ernie": {**ONE, "hidden_act": "relu"},
    "EuroBert": {**ONE, "num_key_value_heads": 4},
    "Gte": ONE,
    "JinaEmbeddingsV3": ONE,
    "NomicBert": ONE,
    "RobertaPreLayerNorm": OFFSET,
    "XLMRoberta": OFFSET,
    "XLMRobertaXL": OFFSET,
}
MORE_HEADS: Mapping[str, Mapping[str, Any]] = {
    "BigBird": {**ONE, "attention_type": "original_full"},
    "Deberta": ONE,
    "Deberta of its own": {**ONE, "legacy": False},
    "Esm": {**OFFSET, **ESM},
    "Luke": {**OFFSET, "entity_vocab_size": 9, "entity_emb_size": 8},
    "MegatronBert": ONE,
    "RemBert": {**ONE, "input_embedding_size": 24, "output_embedding_size": 28},
    "RoCBert": {**ONE, "pronunciation_vocab_size": 9, "shape_vocab_size": 9},
    "SqueezeBert": {**ONE, "embedding_size": 32},
    "Xmod": {**OFFSET, "languages": ["en_XX"], "default_language": "en_XX"},
}
"""Traced as they are, which takes longer. Bert, DistilBert, ModernBert, MPNet and Roberta: test_sparse_parity.py."""

REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "ConvBert": (ONE, "ConvBertModel is not supported: it mixes"),
    "FNet": (ONE, "FNetModel is not supported: it mixes"),
    "Longformer": ({**OFFSET, "attention_window": 16}, "LongformerModel is not supported: it cuts"),
    "Nystromformer": (ONE, "NystromformerModel is not supported: it cuts"),
    "RoFormer": ({**ONE, "embedding_size": 32}, "RoFormerModel is not supported: it counts"),
    "Ultrabert": (ONE, r"This ultrabert checkpoint has none that is laid out as \['bert', .*head.linear1.weight"),
}

TEXTS = ["", "the lazy dog", "a fox", "a quick brown fox jumps over the lazy dog " * 3, "fox " * 140]


def check(name: str, config: Mapping[str, Any], folder: Path) -> None:
    checkpoint = save_masked(folder / "checkpoint", name.partition(" ")[0], config)
    export_model(checkpoint, folder / "artifact")
    with PoolingModel.load(folder / "artifact") as model:
        found = np.stack([row.to_dense() for row in model.embed_sparse(TEXTS[:4])])
        alone = np.concatenate([model.embed(text) for text in TEXTS[:4]])
        with pytest.warns(UserWarning, match="cut"):
            cut = model.embed(TEXTS[4], truncate=True)
    assert np.array_equal(found, alone)
    expected = encode(checkpoint, TEXTS)
    assert largest_difference(list(expected), [*found, *cut]) <= TOLERANCE * expected.max()


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_masked_language_models(name: str, tmp_path: Path) -> None:
    check(name, HEADS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_HEADS)
def test_more_heads_of_masked_language_models(name: str, tmp_path: Path) -> None:
    check(name, MORE_HEADS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted({*ACTIVATION_WORDS, "gelu", "relu", "tanh"} - {"gelu_new", "silu"}))
def test_activations_of_heads(word: str, tmp_path: Path) -> None:
    check("Electra" if word == "gelu" else "Albert", {**ODD, "hidden_act": word}, tmp_path)


@pytest.mark.parametrize("name", ["Albert", "Electra"])
def test_int8_of_embeddings_that_are_projected_first(name: str, tmp_path: Path) -> None:
    checkpoint = save_masked(tmp_path / "checkpoint", name, HEADS[name])
    texts = few_calibration_texts(tmp_path)
    export_model(checkpoint, tmp_path / "artifact", precisions=("int8",), calibration=texts)
    with PoolingModel.load(tmp_path / "artifact") as model:
        quantization = model.variant.quantization
        found = model.embed(TEXTS[:4])
        assert np.array_equal(found, np.concatenate([model.embed(text) for text in TEXTS[:4]]))
    assert quantization is not None
    assert quantization.static + quantization.token > 0
    cosines = cosine_rows(encode(checkpoint, TEXTS[:4]).astype(np.float64), found.astype(np.float64))
    assert cosines.min() > 0.99


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    with pytest.raises(PoolgraphError, match=message):
        plan_of(save_masked(tmp_path / "checkpoint", name, config))


@pytest.mark.parametrize("word", ["mish", "laplace", "gelu_10"])
def test_activations_that_are_not_compiled(word: str, tmp_path: Path) -> None:
    assert word in ACT2FN
    with pytest.raises(PoolgraphError, match=rf"activation '{word}' in the head; those compiled are \['gelu', "):
        plan_of(save_masked(tmp_path / "checkpoint", "Albert", {**ODD, "hidden_act": word}))
