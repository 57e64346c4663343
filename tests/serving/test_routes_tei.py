"""Routes of text-embeddings-inference."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import PROMPTS

from poolgraph.config import PoolingParams
from poolgraph.runtime.llm import LLM
from poolgraph.runtime.model import PoolingModel

TEXTS = ["w1 w2 w3", "w5"]


def run(site, texts, task, **params):
    llm = LLM(str(site.model.runner.model.path))
    outputs = llm.encode(texts, pooling_task=task, pooling_params=PoolingParams(**params), use_tqdm=False)
    return [output.outputs.data for output in outputs]


def test_embed(make_site):
    site = make_site()
    answer = site.post("/embed", {"inputs": TEXTS})
    assert np.array_equal(np.array(answer.json(), dtype=np.float32), run(site, TEXTS, "embed"))
    assert answer.headers["x-tokens-used"] == "8"
    assert answer.headers["x-tokens-dropped"] == "0"
    one = site.post("/embed", {"inputs": TEXTS[0]}).json()
    assert one == answer.json()[:1]


def test_options_of_embed(make_site):
    site = make_site()
    raw = site.post("/embed", {"inputs": TEXTS, "normalize": False}).json()
    assert np.array_equal(np.array(raw, dtype=np.float32), run(site, TEXTS, "embed", use_activation=False))
    prompted = site.post("/embed", {"inputs": TEXTS, "prompt_name": "query"}).json()
    expected = run(site, [PROMPTS["query"] + text for text in TEXTS], "embed")
    assert np.array_equal(np.array(prompted, dtype=np.float32), expected)
    short = site.post("/embed", {"inputs": TEXTS, "dimensions": 4}).json()
    assert np.array_equal(np.array(short, dtype=np.float32), run(site, TEXTS, "embed", dimensions=4))
    long = " ".join(["w1"] * 20 + ["w2"] * 30)
    assert site.post("/embed", {"inputs": long}).status_code == 400
    right, left = (
        site.post("/embed", {"inputs": long, "truncate": True, "truncation_direction": side})
        for side in ("Right", "left")
    )
    assert right.headers["x-tokens-dropped"] == left.headers["x-tokens-dropped"] == "12"
    assert right.json() != left.json()


def test_a_prompt_that_is_not_there(make_site):
    answer = make_site().post("/embed", {"inputs": "w1", "prompt_name": "nope"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("no prompt 'nope'; this model has ['document',")


def test_embed_all(make_site):
    site = make_site()
    got = site.post("/embed_all", {"inputs": TEXTS}).json()
    for rows, expected in zip(got, run(site, TEXTS, "token_embed"), strict=True):
        assert np.array_equal(np.array(rows, dtype=np.float32), expected)


def test_embed_sparse(make_site):
    site = make_site("splade")
    answer = site.post("/embed_sparse", {"inputs": TEXTS})
    assert answer.headers["x-tokens-used"] == "8"
    dense = run(site, TEXTS, "embed")
    assert np.array_equal(
        np.array(site.post("/embed", {"inputs": TEXTS, "normalize": False}).json(), dtype=np.float32), dense
    )
    assert [len(weights) for weights in answer.json()] == [5, 5]
    for weights, row in zip(answer.json(), dense, strict=True):
        found = np.zeros_like(row)
        found[[pair["index"] for pair in weights]] = [pair["value"] for pair in weights]
        assert np.array_equal(found, row)
    prompted = site.post("/embed_sparse", {"inputs": TEXTS[0], "prompt_name": "query"}).json()
    assert prompted == site.post("/embed_sparse", {"inputs": PROMPTS["query"] + TEXTS[0]}).json()
    assert site.post("/embed_sparse", {"inputs": "w1 " * 50}).status_code == 400
    assert site.post("/embed_sparse", {"inputs": "w1 " * 50, "truncate": True}).headers["x-tokens-dropped"] == "12"
    assert site.get("/info").json()["model_type"] == {"embedding": {"pooling": "splade"}}


@pytest.mark.parametrize(
    ("name", "fields"), [("splade", {}), ("bge_m3", {}), ("router", {"side": "query"}), ("router", {})]
)
def test_norms_and_widths_of_sparse_embeddings(name, fields, make_site):
    site = make_site(name)
    plain, unit, raw = (
        [
            {pair["index"]: np.float32(pair["value"]) for pair in weights}
            for weights in site.post("/embed_sparse", {"inputs": TEXTS, **fields, **more}).json()
        ]
        for more in ({}, {"normalize": True}, {"normalize": False, "dimensions": None})
    )
    assert raw == plain
    for weights, given in zip(unit, plain, strict=True):
        assert list(weights) == list(given)
        norm = np.linalg.norm(list(given.values()))
        assert norm == 0 or not np.isclose(norm, 1, rtol=1e-3)
        assert np.allclose(list(weights.values()), np.array(list(given.values())) / max(norm, 1e-12), rtol=1e-6)
    refused = site.post("/embed_sparse", {"inputs": TEXTS, **fields, "dimensions": 4})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")
    assert "dimensions is for dense embeddings, got 4" in refused.json()["error"]["message"]


def test_embed_sparse_of_bge_m3(make_site):
    site = make_site("bge_m3")
    texts = ["the lazy dog the", "a fox"]
    answer = site.post("/embed_sparse", {"inputs": texts})
    assert answer.status_code == 200, answer.text
    with PoolingModel.load(site.model.runner.model.path) as model:
        expected = [embedding.to_dict() for embedding in model.embed_sparse(texts)]
    found = [{pair["index"]: np.float32(pair["value"]) for pair in weights} for weights in answer.json()]
    assert found == expected
    assert site.get("/info").json()["model_type"] == {"embedding": {"pooling": "cls"}}


def test_embed_sparse_of_an_auto_encoder(make_site):
    site = make_site("csr")
    texts = ["the lazy dog the", "a fox"]
    answer = site.post("/embed_sparse", {"inputs": texts})
    with PoolingModel.load(site.model.runner.model.path) as model:
        expected = [embedding.to_dict() for embedding in model.embed_sparse(texts)]
    found = [{pair["index"]: np.float32(pair["value"]) for pair in weights} for weights in answer.json()]
    assert found == expected
    assert site.get("/info").json()["model_type"] == {"embedding": {"pooling": "mean"}}


def test_embed_sparse_of_either_route(make_site):
    site = make_site("router")
    texts = ["the lazy dog the", "a fox"]
    with PoolingModel.load(site.model.runner.model.path) as model:
        expected = {side: model.embed_sparse(texts, side=side) for side in ("query", "document")}
    for fields, side in [({"side": "query"}, "query"), ({"side": "document"}, "document"), ({}, "document")]:
        answer = site.post("/embed_sparse", {"inputs": texts, **fields})
        assert answer.status_code == 200, answer.text
        found = [{pair["index"]: np.float32(pair["value"]) for pair in weights} for weights in answer.json()]
        assert found == [embedding.to_dict() for embedding in expected[side]]
    assert expected["query"][0].to_dict() != expected["document"][0].to_dict()
    assert site.post("/embed_sparse", {"inputs": "a fox", "side": "query"}).headers["x-tokens-used"] == "2"
    too_long = site.post("/embed_sparse", {"inputs": "fox " * 50, "side": "query"})
    assert (too_long.status_code, "the limit of queries is 40" in too_long.text) == (400, True)
    cut = site.post("/embed_sparse", {"inputs": "fox " * 50, "side": "query", "truncate": True})
    assert cut.json() == site.post("/embed_sparse", {"inputs": "fox", "side": "query"}).json()
    assert site.post("/embed_sparse", {"inputs": "a", "side": "both"}).status_code in (400, 422)


@pytest.mark.parametrize("kind", ["splade", "bge_m3"])
def test_a_side_of_a_model_without_routes_is_refused(make_site, kind):
    answer = make_site(kind).post("/embed_sparse", {"inputs": "a", "side": "query"})
    assert (answer.status_code, "leave out side" in answer.text) == (400, True)


def test_dense_embeddings_are_not_sparse(make_site):
    answer = make_site("embedder", "splade").post("/embed_sparse", {"inputs": "w1", "model": "embedder"})
    assert answer.status_code == 501
    assert "does not support the Embed sparse API" in answer.json()["error"]["message"]


def test_predict(make_site):
    site = make_site("classifier")
    labels = ("negative", "neutral", "positive")
    (expected,) = run(site, ["w1"], "classify")
    one = site.post("/predict", {"inputs": "w1"}).json()
    assert [row["score"] for row in one] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-7)
    assert [row["label"] for row in one] == [labels[index] for index in np.argsort(-expected)]
    assert site.post("/predict", {"inputs": [["w1"], ["w2"]]}).json()[0] == one
    (logits,) = run(site, ["w1"], "classify", use_activation=False)
    raw = site.post("/predict", {"inputs": "w1", "raw_scores": True}).json()
    assert raw[0]["score"] == pytest.approx(float(logits.max()), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "inputs", "used", "dropped"),
    [
        ("classifier", [["w1"], ["w1 " * 50]], 3 + 40, 52 - 40),
        ("reranker", [["w1", "w2"], ["w1", "w2 " * 200]], 5 + 128, 204 - 128),
    ],
)
def test_predict_tells_the_tokens_used_and_dropped(make_site, kind, inputs, used, dropped):
    answer = make_site(kind).post("/predict", {"inputs": inputs, "truncate": True})
    assert (answer.headers["x-tokens-used"], answer.headers["x-tokens-dropped"]) == (str(used), str(dropped))


def test_predict_pairs(make_site):
    site = make_site("reranker")
    llm = LLM(str(site.model.runner.model.path))
    scores = [output.outputs.score for output in llm.score(["w1", "w2"], ["w3", "w4"], use_tqdm=False)]
    got = site.post("/predict", {"inputs": [["w1", "w3"], ["w2", "w4"]]}).json()
    assert got == [[{"score": score, "label": "relevant"}] for score in scores]
    assert site.post("/predict", {"inputs": ["w1", "w3"]}).json() == got[0]
    for wrong in ([["w1"], ["w2", "w3"]], [], ["a", "b", "c"], [["a", "b", "c"]]):
        assert site.post("/predict", {"inputs": wrong}).status_code == 400


@pytest.mark.parametrize(
    ("kinds", "body", "path"),
    [
        (("embedder",), {"inputs": TEXTS, "normalize": False}, "/embed"),
        (("embedder", "chatty", "classifier"), {"inputs": TEXTS}, "/embed"),
        (("classifier", "embedder"), {"inputs": "w1", "raw_scores": True}, "/predict"),
        (("reranker",), {"inputs": [["w1", "w2"]]}, "/predict"),
    ],
)
def test_the_root_is_the_first_models(make_site, kinds, body, path):
    site = make_site(*kinds)
    answer = site.post("/", body)
    assert answer.status_code == 200
    assert [model.num_calls for model in site.models] == [1] + [0] * (len(kinds) - 1)
    expected = site.post(path, body | {"model": kinds[0]})
    assert (answer.json(), answer.headers["x-tokens-used"]) == (expected.json(), expected.headers["x-tokens-used"])


def test_the_root_takes_another_models_name_too(make_site):
    site = make_site("embedder", "chatty", "classifier")
    assert site.post("/", {"inputs": "w1", "model": "chatty"}).status_code == 200
    assert [model.num_calls for model in site.models] == [0, 1, 0]
    assert site.post("/", {"inputs": "w1", "model": "classifier"}).status_code == 501
    assert site.post("/", {"inputs": "w1", "model": "gpt"}).status_code == 404


@pytest.mark.parametrize("kind", ["tokens", "tagger"])
def test_a_model_without_such_a_task_has_no_root(make_site, kind):
    site = make_site(kind)
    assert site.post("/", {"inputs": "w1"}).status_code == 405
    assert set(site.get("/openapi.json").json()["paths"]["/"]) == {"get"}


def test_similarity(make_site):
    site = make_site()
    llm = LLM(str(site.model.runner.model.path))
    inputs = {"source_sentence": "w1 w2", "sentences": TEXTS}
    expected = [output.outputs.score for output in llm.score("w1 w2", TEXTS, use_tqdm=False)]
    assert site.post("/similarity", {"inputs": inputs}).json() == expected
    prompted = site.post("/similarity", {"inputs": inputs, "parameters": {"prompt_name": "query"}}).json()
    prompt = PROMPTS["query"]
    outputs = llm.score(f"{prompt}w1 w2", [prompt + text for text in TEXTS], use_tqdm=False)
    assert prompted == [output.outputs.score for output in outputs]


@pytest.mark.parametrize(
    ("kind", "described"),
    [
        ("embedder", {"embedding": {"pooling": "mean"}}),
        ("reranker", {"reranker": {"id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}}),
    ],
)
def test_info(make_site, kind, described):
    info = make_site(kind, max_texts=77).get("/info").json()
    assert info["model_id"] == kind
    assert info["model_dtype"] == "fp32"
    assert info["model_type"] == described
    assert info["max_input_length"] == {"embedder": 40, "reranker": 128}[kind]
    assert info["max_client_batch_size"] == 77
