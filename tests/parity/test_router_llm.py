"""LLM over an inference-free SPLADE: which prompts are queries, and what they are answered."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SparseEncoder
from sentence_transformers.sentence_transformer.modules import Normalize
from tiny_router import save_router

from poolgraph import LLM, PoolingModel, PoolingParams, export_model
from poolgraph.errors import InputError

TEXTS = ["the lazy dog", "a quick fox", "fox fox a fox"]
QUERY = PoolingParams(extra_kwargs={"side": "query"})
DOCUMENT = PoolingParams(extra_kwargs={"side": "document"})
PROMPTS = {"query": "a quick ", "document": "the "}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router") / "checkpoint"
    return save_router(folder, router={"default_route": None, "allow_empty_key": False}, prompts=PROMPTS)


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    export_model(checkpoint, checkpoint.with_name("artifact"))
    return checkpoint.with_name("artifact")


@pytest.fixture(scope="module")
def llm(artifact: Path) -> LLM:
    return LLM(str(artifact))


@pytest.fixture(scope="module")
def expected(artifact: Path) -> dict[str, np.ndarray]:
    """By side, what PoolingModel answers, which other tests compare with sentence-transformers."""
    with PoolingModel.load(artifact) as model:
        return {side: model.embed(TEXTS, side=side, prompt="") for side in ("query", "document")}


def embed(llm: LLM, prompts: Any, **options: Any) -> np.ndarray:
    return np.stack([output.outputs.data for output in llm.embed(prompts, use_tqdm=False, **options)])


def test_each_side(llm: LLM, expected: dict[str, np.ndarray]) -> None:
    assert not np.array_equal(expected["query"], expected["document"])
    assert np.array_equal(embed(llm, TEXTS, pooling_params=QUERY), expected["query"])
    assert np.array_equal(embed(llm, TEXTS, pooling_params=DOCUMENT), expected["document"])
    assert np.array_equal(embed(llm, TEXTS), expected["document"]), "nobody says it, the model has no default"
    outputs = llm.encode(TEXTS, QUERY, use_tqdm=False, pooling_task="embed")
    assert np.array_equal([output.outputs.data for output in outputs], expected["query"])


def test_sides_mixed_in_one_list(llm: LLM, expected: dict[str, np.ndarray]) -> None:
    params = [QUERY, PoolingParams(), QUERY]
    outputs = llm.embed(TEXTS, pooling_params=params, use_tqdm=False)
    rows = [expected["query"][0], expected["document"][1], expected["query"][2]]
    assert np.array_equal([output.outputs.data for output in outputs], rows)
    ids = [int(output.request_id) for output in outputs]
    assert ids == list(range(ids[0], ids[0] + 3))
    assert len(outputs[0].prompt_token_ids) == 3, "queries have no special tokens"
    unit = [PoolingParams(extra_kwargs={"side": "query"}, use_activation=True), DOCUMENT, QUERY]
    found = embed(llm, TEXTS, pooling_params=unit)
    assert np.allclose(found[0], rows[0] / np.linalg.norm(rows[0]))
    assert np.array_equal(found[1:], rows[1:])
    with pytest.raises(InputError, match="query 2 has 60 tokens"):
        llm.embed([*TEXTS[:2], "fox " * 60], pooling_params=params, use_tqdm=False)


def test_queries_without_a_token_and_as_token_ids(llm: LLM, expected: dict[str, np.ndarray]) -> None:
    empty, text = llm.embed(["", TEXTS[0]], pooling_params=QUERY, use_tqdm=False)
    assert (empty.prompt_token_ids, empty.outputs.data.any()) == ([], False)
    assert np.array_equal(embed(llm, [text.prompt_token_ids], pooling_params=QUERY), expected["query"][:1])
    with pytest.raises(InputError, match="out of vocabulary"):
        llm.embed([[5] * 50 + [10**6]], pooling_params=QUERY, truncate_prompt_tokens=-1, use_tqdm=False)
    with pytest.raises(InputError, match="out of vocabulary"):
        llm.embed([[10**6]], pooling_params=QUERY, use_tqdm=False)
    with pytest.raises(InputError, match="query 1 has no token id"):
        llm.embed([[5], {"prompt_token_ids": []}], pooling_params=QUERY, use_tqdm=False)
    with pytest.raises(InputError, match="at least one prompt"):
        llm.embed([], pooling_params=QUERY, use_tqdm=False)
    with pytest.raises(InputError, match="query 0 has 41 tokens and the limit of queries is 40"):
        llm.embed([[5] * 41], pooling_params=QUERY, use_tqdm=False)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize(("keep", "kept"), [(-1, 40), (3, 3), (1, 1)])
def test_long_queries_are_cut(llm: LLM, keep: int, kept: int, ids: bool) -> None:
    text: Any = "fox " * 30 + "dog " * 30
    if ids:
        text = llm.get_tokenizer().backend.encode(text, add_special_tokens=False).ids
    for side in ("right", "left"):
        cut = {"truncate_prompt_tokens": keep, "truncation_side": side}
        (output,) = llm.embed([text], pooling_params=QUERY, tokenization_kwargs=cut, use_tqdm=False)
        assert (len(output.prompt_token_ids), output.num_truncated_tokens) == (kept, 60 - kept)
        words = llm.get_tokenizer().decode(output.prompt_token_ids).split()
        whole = ["fox"] * 30 + ["dog"] * 30
        assert words == (whole[:kept] if side == "right" else whole[-kept:])


def test_a_lower_limit_holds_for_queries(artifact: Path) -> None:
    low = LLM(str(artifact), max_model_len=8)
    with pytest.raises(InputError, match="the limit of queries is 8"):
        low.embed(["fox " * 9], pooling_params=QUERY, use_tqdm=False)
    assert len(low.embed(["fox " * 8], pooling_params=QUERY, use_tqdm=False)) == 1


@pytest.mark.parametrize("side", ["passage", "", 7, ["query"], True])
def test_no_such_side(llm: LLM, side: object) -> None:
    with pytest.raises(InputError, match="side must be one of"):
        llm.embed(TEXTS, pooling_params=PoolingParams(extra_kwargs={"side": side}), use_tqdm=False)


def test_a_prompt_names_its_side(artifact: Path) -> None:
    with PoolingModel.load(artifact) as model:
        for side in ("query", "document"):
            plain = model.embed(TEXTS, prompt_name=side, side=side)
            assert np.array_equal(model.embed(TEXTS, prompt_name=side), plain)
            sparse = model.embed_sparse(TEXTS, prompt_name=side)
            assert np.array_equal([embedding.to_dense() for embedding in sparse], plain)
        other = model.embed(TEXTS, prompt=PROMPTS["query"], side="document")
        assert np.array_equal(model.embed(TEXTS, prompt_name="query", side="document"), other)


def test_what_normalizes_documents_leaves_queries_alone(tmp_path: Path) -> None:
    checkpoint = save_router(tmp_path / "checkpoint", document_head=[Normalize()])
    export_model(checkpoint, tmp_path / "artifact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(checkpoint), device="cpu")
        queries, documents = encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)
    llm = LLM(str(tmp_path / "artifact"))
    assert np.array_equal(embed(llm, TEXTS, pooling_params=QUERY), queries.to_dense().numpy())
    found = embed(llm, TEXTS, pooling_params=DOCUMENT)
    assert np.allclose(found, documents.to_dense().numpy(), atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    scores = [output.outputs.score for output in llm.score(TEXTS, TEXTS, use_tqdm=False)]
    assert np.allclose(scores, encoder.similarity_pairwise(queries, documents).numpy(), rtol=1e-5)
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert np.allclose(model.score(TEXTS, TEXTS), scores, rtol=1e-6)
