"""Inference-free SPLADE artifacts against sentence-transformers' SparseEncoder with a Router."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_table import TOLERANCE, largest_difference, make_texts
from sentence_transformers import SparseEncoder
from tiny_router import save_router

from poolgraph import PoolingModel, export_model
from poolgraph.cli import main
from poolgraph.errors import InputError

QUERIES = ["the lazy dog", "fox fox a fox", "", "a fox [SEP] the [CLS] fox", "quick " * 60, " ".join("abcdefgh" * 9)]


def ask(folder: Path, method: str, texts: list[str], **options: Any) -> np.ndarray:
    """The oracle's weights, (num_texts, vocab_size), all texts as one batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(folder), device="cpu")
        return getattr(encoder, method)(texts, convert_to_sparse_tensor=False, **options).numpy()


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its artifact, side by side."""
    folder = tmp_path_factory.mktemp("router")
    save_router(folder / "checkpoint", prompts={"query": "a quick ", "document": "the "})
    export_model(folder / "checkpoint", folder / "artifact")
    return folder


@pytest.mark.filterwarnings("ignore:.* were longer than .* tokens and were cut")
def test_queries_equal_sentence_transformers(routed: Path) -> None:
    expected = ask(routed / "checkpoint", "encode_query", QUERIES)
    with PoolingModel.load(routed / "artifact") as model:
        found = model.encode_query(QUERIES)
        assert np.array_equal(model.encode_query(QUERIES[::-1])[::-1], found)
        assert np.array_equal(np.stack([model.encode_query(text) for text in QUERIES]), found)
        sparse = model.embed_sparse(QUERIES, prompt_name="query", side="query", truncate=True)
    assert np.array_equal(found, expected)
    assert np.array_equal(np.stack([embedding.to_dense() for embedding in sparse]), expected)
    assert (found < 0).any(), "weights below 0 are kept"
    assert all((embedding.values != 0).all() for embedding in sparse)


def test_a_warning_of_cuts_names_the_limit_of_the_side(routed: Path) -> None:
    with PoolingModel.load(routed / "artifact") as model:
        long = "fox " * 200
        for ask_long in (
            lambda: model.encode_query([long]),
            lambda: model.embed_sparse([long], side="query", truncate=True),
            lambda: model.embed([long], side="query", truncate=True),
        ):
            with pytest.warns(UserWarning, match="1 of 1 texts were longer than 40 tokens and were cut"):
                ask_long()
        limit = model.manifest.limits.max_model_len
        assert limit != 40
        for ask_long in (lambda: model.encode_document([long]), lambda: model.embed([long], truncate=True)):
            with pytest.warns(UserWarning, match=f"1 of 1 texts were longer than {limit} tokens and were cut"):
                ask_long()


def test_documents_equal_sentence_transformers(routed: Path) -> None:
    with PoolingModel.load(routed / "artifact") as model:
        texts = make_texts(model.count_tokens, 100)
        found, plain = model.encode_document(texts), model.encode(texts)
        assert np.array_equal(model.embed(texts), plain)
        assert np.array_equal(model.embed(texts, side="document"), plain)
    for method, answers in (("encode_document", found), ("encode", plain)):
        expected = ask(routed / "checkpoint", method, texts)
        assert largest_difference(list(expected), list(answers)) <= TOLERANCE * expected.max()
    assert not np.array_equal(found, plain)


@pytest.mark.parametrize("name", ["query", "document"])
def test_encode_takes_a_prompt_for_no_side_as_sentence_transformers_does(routed: Path, name: str) -> None:
    texts = ["the lazy dog", "a quick brown fox jumps"]
    expected = ask(routed / "checkpoint", "encode", texts, prompt_name=name)
    with PoolingModel.load(routed / "artifact") as model:
        found = model.encode(texts, prompt_name=name)
    assert largest_difference(list(expected), list(found)) <= TOLERANCE * expected.max()


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_the_largest_weights_are_kept(routed: Path, most: int) -> None:
    texts = ["the lazy dog", "a quick brown fox jumps"]
    expected = ask(routed / "checkpoint", "encode_query", texts, max_active_dims=most)
    with PoolingModel.load(routed / "artifact") as model:
        assert np.array_equal(model.encode_query(texts, max_active_dims=most), expected)
        sparse = model.embed_sparse(texts, prompt_name="query", side="query", max_active_dims=most)
    assert np.array_equal(np.stack([embedding.to_dense() for embedding in sparse]), expected)


@pytest.mark.parametrize(
    ("router", "route"),
    [
        ({"default_route": "query"}, "query"),
        ({"default_route": None}, "query"),
        ({"default_route": None, "allow_empty_key": False}, None),
    ],
)
def test_texts_of_which_nobody_says_what_they_are(router: dict[str, Any], route: str | None, tmp_path: Path) -> None:
    checkpoint = save_router(tmp_path / "checkpoint", router=router, max_active_dims=3)
    export_model(checkpoint, tmp_path / "artifact")
    texts = ["the lazy dog", "a quick brown fox"]
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert model.manifest.static_query is not None
        assert model.manifest.static_query.default_route == route
        assert np.array_equal(model.encode_query(texts), ask(checkpoint, "encode_query", texts))
        if route is not None:
            assert np.array_equal(model.encode(texts), ask(checkpoint, "encode", texts))
            return
        with pytest.raises(ValueError, match="Could not determine route"):
            ask(checkpoint, "encode", texts)
        for method in (model.encode, model.embed, model.embed_sparse):
            with pytest.raises(InputError, match="has no default route: say which they are, with side='query'"):
                method(texts)


def test_what_is_asked_of_a_route(routed: Path) -> None:
    with PoolingModel.load(routed / "artifact") as model:
        assert model.manifest.scoring is None
        with pytest.raises(InputError, match=r"side must be one of .*, not 'passage'"):
            model.embed_sparse("a fox", side="passage")
        with pytest.raises(InputError, match="query 1 has 60 tokens and the limit of queries is 40"):
            model.embed_sparse(["a fox", "quick " * 60], side="query")
        (row,) = [row for row in model.manifest.report.rows if row.variant == "queries"]
        assert (row.passed, row.min_cosine) == (True, 1.0)


def test_files_of_queries(routed: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the lazy dog\na fox\n")
    out = tmp_path / "out.jsonl"
    command = ["embed", str(routed / "artifact"), str(tmp_path / "in.txt"), "--sparse", "--side", "query"]
    assert main([*command, "-o", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    with PoolingModel.load(routed / "artifact") as model:
        expected = [found.to_dict() for found in model.embed_sparse(["the lazy dog", "a fox"], side="query")]
    found = [{pair["index"]: pair["value"] for pair in line["embedding"]} for line in lines]
    assert [list(weights) for weights in found] == [list(weights) for weights in expected]
    assert np.allclose([*found[0].values()], [*expected[0].values()], rtol=1e-6)


@pytest.mark.filterwarnings("default:.* were longer than .* tokens and were cut")
@pytest.mark.parametrize("options", [["--side", "query"], ["--prompt-name", "query"]])
def test_files_of_queries_that_are_cut(
    routed: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["the lazy dog", "fox " * 59 + "fox"]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    out = tmp_path / "out.npy"
    command = ["embed", str(routed / "artifact"), str(tmp_path / "in.txt"), *options, "--truncate", "-o", str(out)]
    assert main(command) == 0
    assert "1 of 2 texts were longer than 40 tokens and were cut" in capsys.readouterr().err
    prompt = "" if "--side" in options else "a quick "
    with PoolingModel.load(routed / "artifact") as model, pytest.warns(UserWarning, match="were cut"):
        assert np.array_equal(np.load(out), model.embed(texts, side="query", prompt=prompt, truncate=True))
