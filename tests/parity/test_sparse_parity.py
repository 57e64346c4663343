"""SPLADE artifacts against sentence-transformers' SparseEncoder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from parity_table import TOLERANCE, largest_difference, make_texts
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from tiny_heads import save_model
from tiny_sparse import encode, save_splade

from poolgraph import LLM, PoolingModel, PoolingParams, export_model
from poolgraph.cli import main
from poolgraph.errors import ExportError, InputError, TaskNotSupported
from poolgraph.runtime.sparse import sparsify


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("BertModel", {"pooling_strategy": "max"}),
        ("BertModel", {"pooling_strategy": "sum"}),
        ("DistilBertModel", {"pooling_strategy": "max", "activation_function": "log1p_relu"}),
        ("RobertaModel", {"pooling_strategy": "sum", "activation_function": "log1p_relu"}),
        ("MPNetModel", {}),
        ("ModernBertModel", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) or "default",
)
def test_weights_of_words_equal_sentence_transformers(name: str, pooling: dict[str, str], tmp_path: Path) -> None:
    checkpoint = save_splade(tmp_path / "checkpoint", name, pooling=pooling)
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert model.manifest.tasks == ("embed",)
        texts = make_texts(model.count_tokens, 120)
        found = model.embed(texts)
        assert np.array_equal(model.embed(texts[::-1])[::-1], found)
        assert np.array_equal(np.concatenate([model.embed(text) for text in texts]), found)
    expected = encode(checkpoint, texts)
    assert found.min() == 0
    assert largest_difference(list(expected), list(found)) <= TOLERANCE * expected.max()


@pytest.fixture(scope="module")
def splade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its artifact, side by side."""
    folder = tmp_path_factory.mktemp("splade")
    options = {"prompts": {"query": "a quick ", "document": ""}, "max_active_dims": 20}
    save_splade(folder / "checkpoint", "BertModel", **options)
    export_model(folder / "checkpoint", folder / "artifact")
    return folder


def test_sparse_embeddings(splade: Path) -> None:
    texts = ["", "the lazy dog", "a fox"]
    with PoolingModel.load(splade / "artifact") as model:
        assert (model.manifest.pooler.sparse, model.manifest.pooler.max_active_dims) == (True, 20)
        assert model.similarity_fn_name == "dot"
        dense, found = model.embed(texts), model.embed_sparse(texts)
        assert np.array_equal(np.stack([embedding.to_dense() for embedding in found]), dense)
        assert [len(embedding) for embedding in found] == [20] * 3
        few = model.embed_sparse(texts, max_active_dims=3)
        many = model.embed_sparse(texts, max_active_dims=400)
        (lone,) = model.embed_sparse(texts[1])
        query = model.encode_query(texts)
        prompted = model.embed_sparse(texts, prompt_name="query")
    assert largest_difference(list(encode(splade / "checkpoint", texts)), list(dense)) <= TOLERANCE * dense.max()
    for number, embeddings in ((3, few), (400, many)):
        expected = encode(splade / "checkpoint", texts, max_active_dims=number)
        found = [embedding.to_dense() for embedding in embeddings]
        assert largest_difference(list(expected), found) <= TOLERANCE * dense.max()
    assert np.array_equal(lone.to_dense(), dense[1])
    assert np.array_equal(np.stack([embedding.to_dense() for embedding in prompted]), query)
    assert not np.array_equal(query, dense)


def test_norms_of_what_is_kept(splade: Path) -> None:
    with PoolingModel.load(splade / "artifact") as model:
        rows = model.embed(["the lazy dog", "a fox"], normalize=True)
        assert [np.count_nonzero(row) for row in rows] == [20, 20]
        assert np.allclose(np.linalg.norm(rows, axis=1), 1)
        assert np.allclose(model.score("a fox", ["a fox", "the lazy dog"]), [1, rows[0] @ rows[1]])
    outputs = LLM(str(splade / "artifact")).embed("a fox", pooling_params=PoolingParams(use_activation=True))
    assert np.array_equal(outputs[0].outputs.embedding, rows[1])


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def old_names(tensors: dict[str, Any]) -> dict[str, Any]:
    spellings = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    return {
        next((name.replace(new, old) for new, old in spellings if name.endswith(new)), name): tensor
        for name, tensor in tensors.items()
    }


def other_bias(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "cls.predictions.decoder.bias": -tensors["cls.predictions.bias"]}


def no_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [old_names, other_bias, no_prefix])
def test_tensors_as_checkpoints_have_them(change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path) -> None:
    checkpoint = save_splade(tmp_path / "checkpoint", "BertModel")
    change_tensors(checkpoint, change)
    export_model(checkpoint, tmp_path / "artifact")
    texts = ["the lazy dog", "a fox"]
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = model.embed(texts)
    assert largest_difference(list(encode(checkpoint, texts)), list(found)) <= TOLERANCE * found.max()


def test_decoder_that_is_not_tied(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "checkpoint", "BertModel", "BertForMaskedLM", tie_word_embeddings=False)
    change_tensors(checkpoint, lambda it: {name: it[name] for name in it if name != "cls.predictions.decoder.weight"})
    overrides = {"architectures": ["BertSpladeSparseEmbeddingModel"]}
    with pytest.raises(ExportError, match="has no matrix; looked for "):
        export_model(checkpoint, tmp_path / "artifact", hf_overrides=overrides)


def test_other_programs_get_the_weights_that_are_kept(splade: Path) -> None:
    card = (splade / "artifact" / "README.md").read_text()
    assert "`sentence_embedding` is the finished answer, of whose weights the 20 largest are kept" in card
    assert 'weights = model.embed_sparse(["a text", "another text"])' in card


def test_options_of_sparse_encoder(splade: Path, tmp_path: Path) -> None:
    texts = ["the lazy dog", "a fox"]
    with PoolingModel.load(splade / "artifact") as model:
        found = model.encode(texts, max_active_dims=7, save_to_cpu=True)
        document = model.encode_document(texts, max_active_dims=7)
        with pytest.raises(InputError, match=r"convert_to_sparse_tensor has no meaning here: .* embed_sparse"):
            model.encode(texts, convert_to_sparse_tensor=True)
    assert (
        largest_difference(list(encode(splade / "checkpoint", texts, max_active_dims=7)), list(found))
        <= TOLERANCE * found.max()
    )
    assert np.array_equal(document, found)
    export_model(splade / "checkpoint-mlm", tmp_path / "artifact", task="embed")
    refusal = pytest.raises(InputError, match=r"max_active_dims is for sparse embeddings, and those of .* are dense")
    with PoolingModel.load(tmp_path / "artifact") as model, refusal:
        model.encode(texts, max_active_dims=7)


def test_words_of_an_embedding(splade: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(splade / "checkpoint"), device="cpu")
        expected = encoder.decode(encoder.encode("the lazy dog"), top_k=5)
    with PoolingModel.load(splade / "artifact") as model:
        (embedding,) = model.embed_sparse("the lazy dog")
        found = model.decode(embedding, top_k=5)
        assert len(model.decode(embedding)) == 20
        with pytest.raises(InputError, match="embedding must be one SparseEmbedding, got list"):
            model.decode([embedding])  # type: ignore[arg-type]
        with pytest.raises(InputError, match="top_k must be an int of 1 or more, not 0"):
            model.decode(embedding, top_k=0)
        with pytest.raises(InputError, match="the embedding has 3 words, those of"):
            model.decode(sparsify(np.ones((1, 3), dtype=np.float32))[0])
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert np.allclose([value for _, value in found], [value for _, value in expected], rtol=1e-5)


def test_vllm_names_the_architecture(tmp_path: Path) -> None:
    save_splade(tmp_path / "checkpoint", "BertModel")
    overrides = {"architectures": ["BertSpladeSparseEmbeddingModel"]}
    export_model(tmp_path / "checkpoint-mlm", tmp_path / "artifact", hf_overrides=overrides)
    texts = ["the lazy dog", "a fox"]
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = model.embed(texts)
        assert model.manifest.architecture == "BertSpladeSparseEmbeddingModel"
    assert largest_difference(list(encode(tmp_path / "checkpoint", texts)), list(found)) <= TOLERANCE * found.max()


def test_embeddings_that_are_dense(splade: Path, tmp_path: Path) -> None:
    export_model(splade / "checkpoint-mlm", tmp_path / "artifact", task="embed")
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert not model.manifest.pooler.sparse
        with pytest.raises(TaskNotSupported, match="embeds densely: sparse embeddings are of SPLADE models"):
            model.embed_sparse("a fox")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "classify"}, TaskNotSupported, "weighs words .SPLADE. and classifies nothing"),
        ({"task": "token_embed"}, TaskNotSupported, "cannot token_embed"),
        (
            {"pooler_config": {"pooling_type": "CLS"}},
            InputError,
            "pooling cls was asked for, but weights of words .SPLADE. are pooled by max",
        ),
    ],
)
def test_what_splade_is_not(
    splade: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export_model(splade / "checkpoint", tmp_path / "artifact", **options)


def test_files_of_sparse_embeddings(splade: Path, tmp_path: Path) -> None:
    texts = ["the lazy dog", "", "a fox"]
    (tmp_path / "in.txt").write_text("the lazy dog\n\na fox\n")
    command = ["embed", str(splade / "artifact"), str(tmp_path / "in.txt"), "--sparse", "--max-active-dims", "4"]
    for suffix in ("jsonl", "parquet"):
        assert main([*command, "-o", str(tmp_path / f"out.{suffix}")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    with PoolingModel.load(splade / "artifact") as model:
        expected = [embedding.to_dict() for embedding in model.embed_sparse(texts, max_active_dims=4)]
    for found in (lines, rows):
        assert [{pair["index"]: pair["value"] for pair in row["embedding"]} for row in found] == expected
    assert main([*command, "-o", str(tmp_path / "out.npy")]) == 2
    assert main([*command, "--no-normalize", "-o", str(tmp_path / "more.jsonl")]) == 2
