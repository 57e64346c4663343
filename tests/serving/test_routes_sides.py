"""Which side of an inference-free SPLADE answers a request, on every route."""

import asyncio

import httpx
import numpy as np
import pytest

from poolgraph import PoolingModel

TEXTS = ["the lazy dog the", "a fox", ""]
LONG = "fox " * 50


@pytest.fixture
def site(make_site):
    return make_site("router")


@pytest.fixture(scope="module")
def expected(find_model):
    """By side, the rows as the model weighs them."""
    with PoolingModel.load(find_model("router").runner.model.path) as model:
        return {side: model.embed(TEXTS, side=side) for side in ("query", "document")}


def dense(answer, size):
    rows = np.zeros((len(answer), size), dtype=np.float32)
    for row, weights in zip(rows, answer, strict=True):
        row[[pair["index"] for pair in weights]] = [pair["value"] for pair in weights]
    return rows


READERS = {
    "/embed": lambda body, size: body,
    "/embed_sparse": dense,
    "/v1/embeddings": lambda body, size: [item["embedding"] for item in body["data"]],
    "/pooling": lambda body, size: [item["data"] for item in body["data"]],
    "/v2/embed": lambda body, size: body["embeddings"]["float"],
    "/v1/embed": lambda body, size: body["embeddings"],
}
PLAIN = {
    "/embed": {"inputs": TEXTS, "normalize": False},
    "/embed_sparse": {"inputs": TEXTS},
    "/v1/embeddings": {"input": TEXTS},
    "/pooling": {"input": TEXTS},
    "/v2/embed": {"texts": TEXTS},
    "/v1/embed": {"texts": TEXTS},
}
SPELLINGS = {
    "/embed": [("side", "{}"), ("prompt_name", "{}")],
    "/embed_sparse": [("side", "{}"), ("prompt_name", "{}")],
    "/v1/embeddings": [("side", "{}")],
    "/pooling": [("side", "{}")],
    "/v2/embed": [("input_type", "search_{}"), ("input_type", "{}")],
    "/v1/embed": [("input_type", "search_{}"), ("input_type", "{}")],
}


@pytest.mark.parametrize("path", PLAIN)
def test_the_side_that_a_request_names_answers(path, site, expected):
    cases = [({}, "document")]
    for name, spelling in SPELLINGS[path]:
        cases += [({name: spelling.format(side)}, side) for side in ("query", "document")]
    for fields, side in cases:
        answer = site.post(path, PLAIN[path] | fields)
        assert answer.status_code == 200, answer.text
        size = expected[side].shape[1]
        found = np.array(READERS[path](answer.json(), size), dtype=np.float32)
        assert np.array_equal(found, expected[side]), (fields, side)


def test_tokens_are_told(site):
    for path, body in (("/embed", {"inputs": TEXTS}), ("/embed_sparse", {"inputs": TEXTS})):
        for side, used in (("query", "6"), ("document", "12")):
            assert site.post(path, body | {"side": side}).headers["x-tokens-used"] == used
    usage = site.post("/v1/embeddings", {"input": TEXTS, "side": "query"}).json()["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (6, 6)
    meta = site.post("/v2/embed", {"texts": TEXTS, "input_type": "search_query"}).json()["meta"]
    assert meta["billed_units"]["input_tokens"] == 6
    assert [row["tokens_used"] for row in meta["token_use"]] == [4, 2, 0]


def test_long_queries(site):
    for path, body in (("/embed", {"inputs": LONG}), ("/embed_sparse", {"inputs": LONG})):
        refused = site.post(path, body | {"side": "query"})
        assert (refused.status_code, "the limit of queries is 40" in refused.text) == (400, True)
        cut = site.post(path, body | {"side": "query", "truncate": True})
        assert (cut.headers["x-tokens-used"], cut.headers["x-tokens-dropped"]) == ("40", "10")
    answer = site.post("/v2/embed", {"texts": [LONG], "input_type": "search_query"})
    assert answer.json()["meta"]["token_use"][0]["tokens_dropped"] == 10
    refused = site.post("/v2/embed", {"texts": [LONG], "input_type": "search_query", "truncate": "NONE"})
    assert (refused.status_code, "the limit of queries is 40" in refused.text) == (400, True)
    limited = {"texts": ["fox " * 9], "input_type": "search_query", "truncate": "NONE", "max_tokens": 8}
    assert "exceeds max_tokens=8" in site.post("/v2/embed", limited).text


def test_what_is_no_side(site, make_site):
    for path, body in (("/embed", {"inputs": "a"}), ("/v1/embeddings", {"input": "a"}), ("/pooling", {"input": "a"})):
        assert site.post(path, body | {"side": "passage"}).status_code in (400, 422)
    plain = make_site("splade")
    for path, body in (
        ("/embed", {"inputs": "w1"}),
        ("/v1/embeddings", {"input": "w1"}),
        ("/pooling", {"input": "w1"}),
    ):
        answer = plain.post(path, body | {"side": "query"})
        assert (answer.status_code, "leave out side" in answer.text) == (400, True)
    answer = make_site("classifier").post("/pooling", {"input": "w1", "side": "query"})
    assert (answer.status_code, "side is for the task embed" in answer.text) == (400, True)
    assert site.post("/v2/embed", {"texts": ["a"], "input_type": "nonsense"}).status_code == 400
    assert site.post("/embed", {"inputs": "a", "prompt_name": "nonsense"}).status_code == 400
    assert site.post("/embed", {"inputs": [], "side": "query"}).status_code == 400


def test_queries_as_token_ids(site):
    ids = site.post("/tokenize", {"prompt": TEXTS[0], "add_special_tokens": False}).json()["tokens"]
    by_ids = site.post("/v1/embeddings", {"input": [ids], "side": "query"}).json()["data"][0]["embedding"]
    by_text = site.post("/v1/embeddings", {"input": TEXTS[0], "side": "query"}).json()["data"][0]["embedding"]
    assert by_ids == by_text


def test_pairs(site, find_model):
    query, documents = TEXTS[1], ["the lazy dog", "a quick fox", "fox"]
    with PoolingModel.load(find_model("router").runner.model.path) as model:
        scores = model.score(query, documents)
    found = site.post("/score", {"queries": query, "documents": documents}).json()
    assert np.array_equal(np.array([item["score"] for item in found["data"]], dtype=np.float32), scores)
    # The query's 2 tokens and a token between the two texts; documents have special tokens.
    assert [item["tokens_used"] for item in found["data"]] == [2 + 1 + 5, 2 + 1 + 5, 2 + 1 + 3]
    ranked = site.post("/rerank", {"query": query, "documents": documents}).json()["results"]
    assert [row["index"] for row in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert np.array_equal(np.array([row["relevance_score"] for row in ranked], dtype=np.float32), np.sort(scores)[::-1])


def test_similarity_is_the_cosine_of_one_side(site, expected):
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[:2]}
    for parameters, side in ((None, "document"), ({"prompt_name": "query"}, "query")):
        rows = expected[side][:2]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        found = site.post("/similarity", {"inputs": inputs, "parameters": parameters}).json()
        assert np.allclose(found, unit @ unit[0], atol=1e-6)


def test_requests_of_both_sides_at_once(site, expected):
    async def ask_all():
        transport = httpx.ASGITransport(app=site.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sides = ["query", "document"] * 20
            answers = await asyncio.gather(
                *(client.post("/embed", json=PLAIN["/embed"] | {"side": side}) for side in sides)
            )
        for side, answer in zip(sides, answers, strict=True):
            assert np.array_equal(np.array(answer.json(), dtype=np.float32), expected[side])

    asyncio.run(ask_all())
