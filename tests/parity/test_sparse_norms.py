"""Norms of sparse embeddings: the model's own is of all weights, a caller's of those that are kept."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from parity_table import TOLERANCE, largest_difference
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tiny_heads import save_model
from tiny_sparse import encode, save_splade

from poolgraph import LLM, PoolingModel, PoolingParams, export_model

TEXTS = ["the lazy dog", "a fox"]
KEPT = 5


def test_a_models_own_norm_is_of_all_weights(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "BertModel", "BertForMaskedLM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [Transformer(str(source), transformer_task="fill-mask"), SpladePooling(), Normalize()]
        SparseEncoder(modules=modules, max_active_dims=KEPT).save_pretrained(str(tmp_path / "checkpoint"))
    export_model(tmp_path / "checkpoint", tmp_path / "artifact")
    expected = encode(tmp_path / "checkpoint", TEXTS)
    assert (np.linalg.norm(expected, axis=1) < 0.9).all()
    with PoolingModel.load(tmp_path / "artifact") as model:
        pooler = model.manifest.pooler
        assert (pooler.normalize, pooler.normalize_kept) == (True, False)
        for found in (model.embed(TEXTS), np.stack([row.to_dense() for row in model.embed_sparse(TEXTS)])):
            assert largest_difference(list(expected), list(found)) <= TOLERANCE * expected.max()
        few = encode(tmp_path / "checkpoint", TEXTS, max_active_dims=2)
        found = [row.to_dense() for row in model.embed_sparse(TEXTS, max_active_dims=2)]
        assert largest_difference(list(few), found) <= TOLERANCE * expected.max()
    llm = LLM(str(tmp_path / "artifact"))
    found = [np.array(output.outputs.embedding) for output in llm.embed(TEXTS)]
    assert largest_difference(list(expected), found) <= TOLERANCE * expected.max()


@pytest.fixture(scope="module")
def splade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splade")
    save_splade(folder / "checkpoint", "BertModel", max_active_dims=KEPT)
    export_model(folder / "checkpoint", folder / "artifact")
    return folder


def unit_rows(folder: Path) -> np.ndarray:
    rows = encode(folder / "checkpoint", TEXTS)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_norm_that_llm_is_told_of_is_of_what_is_kept(splade: Path) -> None:
    expected = unit_rows(splade)
    asked = {"pooler": LLM(str(splade / "artifact"), pooler_config={"normalize": True}), "request": None}
    for how, llm in asked.items():
        if llm is None:
            params = PoolingParams(use_activation=True)
            outputs = LLM(str(splade / "artifact")).embed(TEXTS, pooling_params=params)
        else:
            outputs = llm.embed(TEXTS)
        found = [np.array(output.outputs.embedding) for output in outputs]
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5), how
        assert largest_difference(list(expected), found) <= TOLERANCE, how
    raw = LLM(str(splade / "artifact"), pooler_config={"normalize": True}).embed(
        TEXTS, pooling_params=PoolingParams(use_activation=False)
    )
    assert not np.isclose(np.linalg.norm(raw[0].outputs.embedding), 1, rtol=1e-2)


def test_a_norm_that_the_export_is_told_of_is_of_what_is_kept(splade: Path, tmp_path: Path) -> None:
    expected = unit_rows(splade)
    export_model(splade / "checkpoint", tmp_path / "artifact", pooler_config={"normalize": True})
    with PoolingModel.load(tmp_path / "artifact") as model:
        pooler = model.manifest.pooler
        assert (pooler.normalize, pooler.normalize_kept, pooler.max_active_dims) == (True, True, KEPT)
        assert largest_difference(list(expected), list(model.embed(TEXTS))) <= TOLERANCE
        for number in (KEPT, 2):
            rows = [row.to_dense() for row in model.embed_sparse(TEXTS, max_active_dims=number)]
            assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
            assert [np.count_nonzero(row) for row in rows] == [number] * 2


def test_more_weights_than_words(splade: Path) -> None:
    with PoolingModel.load(splade / "artifact") as model:
        every = model.embed_sparse(TEXTS, max_active_dims=400)
        more = model.embed_sparse(TEXTS, max_active_dims=10**9)
    assert [row.to_dict() for row in more] == [row.to_dict() for row in every]
    assert max(len(row) for row in every) < 400
