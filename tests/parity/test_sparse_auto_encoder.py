"""Sparse auto-encoders (CSR) against sentence-transformers' SparseEncoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from parity_table import TOLERANCE, largest_difference, make_texts
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from tiny_heads import change_json, plan_of
from tiny_models import few_calibration_texts
from tiny_sparse import FEATURES, HIDDEN, KEPT, auto_encoder, encode, save_csr

from poolgraph import LLM, PoolingModel, export_model
from poolgraph.errors import ExportError, InputError, TaskNotSupported
from poolgraph.runtime.compare import cosine_rows
from poolgraph.runtime.fidelity_kinds import FIDELITY_KINDS, Questions, name_kind
from poolgraph.runtime.inspect import describe

TEXTS = ["", "the lazy dog", "a fox", "a quick brown fox jumps over the lazy dog"]


CHAINS = {
    "alone": lambda: [auto_encoder()],
    "normalized behind": lambda: [auto_encoder(), Normalize()],
    "standardized": lambda: [auto_encoder(normalize=True)],
    "normalized before": lambda: [Normalize(), auto_encoder()],
    "behind a Dense": lambda: [Dense(HIDDEN, 21), auto_encoder(input_dim=21, hidden_dim=75)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_features_equal_sentence_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = save_csr(tmp_path / "checkpoint", CHAINS[name](), pooling="cls" if name == "alone" else "mean")
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        pooler = model.manifest.pooler
        assert (model.manifest.tasks, pooler.sparse, pooler.max_active_dims) == (("embed",), True, KEPT)
        assert model.similarity_fn_name == "dot"
        texts = make_texts(model.count_tokens, 120)
        found = model.embed(texts)
        assert np.array_equal(model.embed(texts[::-1])[::-1], found)
        assert np.array_equal(np.concatenate([model.embed(text) for text in texts]), found)
        sparse = np.stack([row.to_dense() for row in model.embed_sparse(texts)])
        assert np.array_equal(sparse, found)
        assert np.array_equal(model.encode(texts), found)
    expected = encode(checkpoint, texts)
    assert largest_difference(list(expected), list(found)) <= TOLERANCE * expected.max()
    assert (np.count_nonzero(found, axis=1) == np.count_nonzero(expected, axis=1)).all()
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5) == (name == "normalized behind")


@pytest.fixture(scope="module")
def csr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csr")
    save_csr(folder / "checkpoint", [auto_encoder(), Normalize()], prompts={"query": "a quick ", "document": ""})
    export_model(folder / "checkpoint", folder / "artifact")
    return folder


@pytest.mark.parametrize("number", [1, 3, KEPT, 40, FEATURES])
def test_more_and_fewer_features(csr: Path, number: int) -> None:
    """A request's number goes before the module's, as in sentence-transformers, and the norm is of those."""
    expected = encode(csr / "checkpoint", TEXTS, max_active_dims=number)
    with PoolingModel.load(csr / "artifact") as model:
        assert np.array_equal(model.embed_sparse(TEXTS, max_active_dims=FEATURES + 5)[0].to_dense(),
                              model.embed_sparse(TEXTS, max_active_dims=FEATURES)[0].to_dense())  # fmt: skip
        for found in (
            [row.to_dense() for row in model.embed_sparse(TEXTS, max_active_dims=number)],
            list(model.encode(TEXTS, max_active_dims=number)),
        ):
            assert largest_difference(list(expected), found) <= TOLERANCE * expected.max()


def test_other_programs_get_the_features_that_are_kept(csr: Path) -> None:
    with PoolingModel.load(csr / "artifact") as model:
        expected = model.embed(TEXTS)
        encoded = [model.tokenizer.encode([text])[0].input_ids for text in TEXTS]
    session = onnxruntime.InferenceSession(csr / "artifact" / "onnx" / "model.onnx")
    longest = max(map(len, encoded))
    input_ids = np.stack([np.pad(ids, (0, longest - len(ids))) for ids in encoded])
    mask = np.stack([np.arange(longest) < len(ids) for ids in encoded]).astype(np.int64)
    feeds = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    (found,) = session.run(["sentence_embedding"], feeds)
    assert largest_difference(list(expected), list(found)) <= TOLERANCE * expected.max()
    assert (np.count_nonzero(found, axis=1) <= KEPT).all()


def test_llm_and_prompts(csr: Path) -> None:
    expected = encode(csr / "checkpoint", TEXTS)
    found = [np.array(output.outputs.embedding) for output in LLM(str(csr / "artifact")).embed(TEXTS)]
    assert largest_difference(list(expected), found) <= TOLERANCE * expected.max()
    with PoolingModel.load(csr / "artifact") as model:
        query = [row.to_dense() for row in model.embed_sparse(TEXTS, prompt_name="query")]
        raw = model.embed(TEXTS, normalize=False)
    expected = encode(csr / "checkpoint", TEXTS, prompt_name="query")
    assert largest_difference(list(expected), query) <= TOLERANCE * expected.max()
    assert (np.linalg.norm(raw, axis=1) > 1.5).any()


def test_features_that_are_all_cut_at_zero(tmp_path: Path) -> None:
    """Fewer than k positive features leave fewer than k; none leaves zeros, whose norm divides nothing."""
    few, none = auto_encoder(), auto_encoder()
    few.latent_bias.data[3:] = -1e4
    none.latent_bias.data[:] = -1e4
    for name, module, most in (("few", few, 3), ("none", none, 0)):
        checkpoint = save_csr(tmp_path / name, [module, Normalize()])
        export_model(checkpoint, tmp_path / f"{name}-artifact")
        with PoolingModel.load(tmp_path / f"{name}-artifact") as model:
            found = model.embed_sparse(TEXTS)
        expected = encode(checkpoint, TEXTS)
        assert largest_difference(list(expected), [row.to_dense() for row in found]) <= TOLERANCE
        assert max(len(row) for row in found) == max(np.count_nonzero(expected, axis=1)) <= most


def test_equal_features(tmp_path: Path) -> None:
    """Of features that tie, the first are kept; sentence-transformers leaves it to torch, which promises no order."""
    module = auto_encoder()
    module.encoder.weight.data[:] = module.encoder.weight.data[:1]
    module.latent_bias.data[:] = 9
    checkpoint = save_csr(tmp_path / "checkpoint", [module])
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = model.embed_sparse(TEXTS)
    expected = encode(checkpoint, TEXTS)
    for row, other in zip(found, expected, strict=True):
        assert row.indices.tolist() == list(range(KEPT))
        assert np.allclose(np.sort(row.values), np.sort(other[other != 0]), rtol=1e-5)


def test_features_have_no_words(csr: Path) -> None:
    with PoolingModel.load(csr / "artifact") as model:
        (embedding,) = model.embed_sparse("a fox")
        shown = describe(model.manifest, csr / "artifact")
        assert "pooler        mean, normalized, weights of features, the 8 largest\n" in shown
        with pytest.raises(TaskNotSupported, match="weighs the features of a sparse auto-encoder, which have no words"):
            model.decode(embedding)
        with pytest.raises(InputError, match="does not support Matryoshka embeddings"):
            model.embed("a fox", dimensions=8)


@pytest.mark.parametrize(
    ("modules", "options", "message"),
    [
        (lambda: [auto_encoder(), Dense(FEATURES, 8)], {}, r"has \['Dense'\] behind its SparseAutoEncoder"),
        (
            lambda: [auto_encoder(), auto_encoder(input_dim=FEATURES)],
            {},
            r"has \['SparseAutoEncoder'\] behind its Sparse",
        ),
        (
            lambda: [auto_encoder()],
            {"max_active_dims": FEATURES + 1},
            r"has 96 features .hidden_dim., of which 97 are to",
        ),
    ],
)
def test_chains_that_are_refused(modules: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        plan_of(save_csr(tmp_path / "checkpoint", modules(), **options))


def test_a_module_without_its_tensors_or_pooling(csr: Path, tmp_path: Path) -> None:
    checkpoint = save_csr(tmp_path / "checkpoint", [auto_encoder()])
    change_json(checkpoint / "2_SparseAutoEncoder" / "config.json", k=0)
    with pytest.raises(ExportError, match=r"2_SparseAutoEncoder/config\.json"):
        plan_of(checkpoint)


def test_int8_is_judged_by_all_features_and_reported_by_those_that_are_kept(tmp_path: Path) -> None:
    """Where features nearly tie, rounding keeps another one: that is told, of the answers that users get."""
    checkpoint = save_csr(tmp_path / "checkpoint", [auto_encoder(hidden_dim=1024, k=32), Normalize()])
    texts = few_calibration_texts(tmp_path)
    export_model(checkpoint, tmp_path / "artifact", precisions=("fp32", "int8"), calibration=texts)
    with PoolingModel.load(tmp_path / "artifact", precision="int8") as model:
        found, raw = model.embed(TEXTS), model.embed_sparse(TEXTS, max_active_dims=1024)
        rows = [row.to_dense() for row in raw]
        kind = FIDELITY_KINDS[name_kind(model.manifest)]
        told = kind.finish(model.manifest, Questions(encoded=(), num_queries=1), rows).rows
    assert told is not None
    assert np.allclose(told, found, atol=1e-6)
    assert (np.count_nonzero(found, axis=1) == 32).all()
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = cosine_rows(encode(checkpoint, TEXTS).astype(np.float64), found.astype(np.float64))
    assert cosines.min() > 0.9
