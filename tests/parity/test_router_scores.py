"""Scores of inference-free SPLADE artifacts: encode_query, encode_document and similarity of sentence-transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SparseEncoder
from tiny_router import save_router

from poolgraph import LLM, PoolingModel, PoolingParams, export_model
from poolgraph.cli import main
from poolgraph.errors import InputError

QUERIES = ["the lazy dog", "a quick fox", "", "a fox [SEP] the [CLS] fox"]
DOCUMENTS = ["a quick brown fox jumps", "the lazy dog sleeps", "fox", "over the dog"]
PROMPTS = {"query": "a quick ", "document": "the "}


@dataclass(frozen=True)
class Routed:
    """An artifact and the oracle's scores (num_queries, num_documents)."""

    artifact: Path
    expected: np.ndarray


@pytest.fixture(scope="module", params=["dot", "cosine", "euclidean", "manhattan"])
def routed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Routed:
    folder = tmp_path_factory.mktemp(request.param)
    prompts = PROMPTS if request.param in ("dot", "cosine") else {}
    save_router(folder / "checkpoint", prompts=prompts, similarity_fn_name=request.param)
    export_model(folder / "checkpoint", folder / "artifact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(folder / "checkpoint"), device="cpu")
        queries, documents = encoder.encode_query(QUERIES), encoder.encode_document(DOCUMENTS)
        return Routed(folder / "artifact", encoder.similarity(queries, documents).to_dense().numpy())


@pytest.fixture
def model(routed: Routed) -> Iterator[PoolingModel]:
    with PoolingModel.load(routed.artifact) as loaded:
        yield loaded


def check(found: object, expected: np.ndarray) -> None:
    assert np.allclose(np.array(found), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_scores_of_a_model(routed: Routed, model: PoolingModel) -> None:
    scores = model.score(QUERIES, DOCUMENTS)
    check(scores, routed.expected.diagonal())
    for query, row in zip(QUERIES, routed.expected, strict=True):
        check(model.score(query, DOCUMENTS), row)
    alone = [model.score(query, document)[0] for query, document in zip(QUERIES, DOCUMENTS, strict=True)]
    assert np.array_equal(alone, scores)
    ranked = model.rerank(QUERIES[0], DOCUMENTS)
    assert [row.index for row in ranked] == np.argsort(-routed.expected[0], kind="stable").tolist()
    check([row.score for row in ranked], np.sort(routed.expected[0])[::-1])
    own = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    check(own, routed.expected)


def test_scores_do_not_depend_on_the_sides_they_are_held_by(routed: Routed, model: PoolingModel) -> None:
    """Many queries of few documents: the scorer streams the queries by then."""
    queries, documents = QUERIES, [DOCUMENTS[1]] * len(QUERIES)
    check(model.score(queries, documents), routed.expected[:, 1])


def test_scores_of_llm(routed: Routed) -> None:
    llm = LLM(str(routed.artifact))
    outputs = llm.score(QUERIES, DOCUMENTS, use_tqdm=False)
    check([output.outputs.score for output in outputs], routed.expected.diagonal())
    for query, row in zip(QUERIES, routed.expected, strict=True):
        check([output.outputs.score for output in llm.score(query, DOCUMENTS, use_tqdm=False)], row)
    ranked = llm.rerank(QUERIES[1], DOCUMENTS, use_tqdm=False)
    check([row.score for row in ranked], np.sort(routed.expected[1])[::-1])
    with pytest.warns(UserWarning, match="extra_kwargs"):
        swapped = llm.score(
            QUERIES[0],
            DOCUMENTS[0],
            pooling_params=PoolingParams(extra_kwargs={"side": "document"}, use_activation=True),
            use_tqdm=False,
        )
    check([swapped[0].outputs.score], routed.expected[0, :1])


def test_bad_pairs(routed: Routed, model: PoolingModel) -> None:
    llm = LLM(str(routed.artifact))
    for score in (model.score, lambda *sides: llm.score(*sides, use_tqdm=False)):
        with pytest.raises(InputError, match="At least one text element"):
            score([], DOCUMENTS)
        with pytest.raises(InputError, match="At least one text_pair element"):
            score(QUERIES[0], [])
        with pytest.raises(InputError, match="the limit of queries is 40"):
            score("fox " * 60, DOCUMENTS)
    with pytest.raises(InputError, match="a prompt is for a cross-encoder"):
        model.score(QUERIES[0], DOCUMENTS, prompt="a ")


def test_files_of_pairs(routed: Routed, tmp_path: Path) -> None:
    pairs = [{"query": query, "document": document} for query, document in zip(QUERIES, DOCUMENTS, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    assert main(["score", str(routed.artifact), str(tmp_path / "pairs.jsonl"), "-o", str(tmp_path / "out.npy")]) == 0
    check(np.load(tmp_path / "out.npy"), routed.expected.diagonal())
    rows = [{"query": query, "documents": DOCUMENTS} for query in QUERIES]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["rerank", str(routed.artifact), str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, row in zip(lines, routed.expected, strict=True):
        check([one["score"] for one in line["results"]], np.sort(row)[::-1])
