"""``/score`` and ``/rerank`` with their versions."""

from __future__ import annotations

import pytest

from poolgraph.config import PoolingParams
from poolgraph.runtime.llm import LLM

QUERY = "w1 w2"
DOCUMENTS = ["w3 w4", "w1 w2", "w5"]


def score(site, queries, documents, **params):
    llm = LLM(str(site.model.runner.model.path))
    outputs = llm.score(queries, documents, pooling_params=PoolingParams(**params), use_tqdm=False)
    return [output.outputs.score for output in outputs]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("kind", ["embedder", "reranker", "tokens"])
@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
def test_scores_are_those_of_the_python_api(make_site, path, kind, names):
    site = make_site(kind)
    body = site.post(path, dict(zip(names, (QUERY, DOCUMENTS), strict=True))).json()
    assert body["id"].startswith("score-")
    assert [(item["index"], item["object"]) for item in body["data"]] == [(i, "score") for i in range(3)]
    assert [item["score"] for item in body["data"]] == score(site, QUERY, DOCUMENTS)
    assert body["usage"]["prompt_tokens"] == sum(item["tokens_used"] for item in body["data"])


def test_pairs_one_by_one(make_site):
    site = make_site("reranker")
    body = site.post("/score", {"text_1": DOCUMENTS, "text_2": DOCUMENTS[::-1]}).json()
    assert [item["score"] for item in body["data"]] == score(site, DOCUMENTS, DOCUMENTS[::-1])


def test_content_in_parts_and_token_ids(make_site):
    site = make_site()
    parts = {"content": [{"type": "text", "text": QUERY}]}
    plain = site.post("/score", {"text_1": QUERY, "text_2": DOCUMENTS}).json()["data"]
    assert site.post("/score", {"text_1": parts, "text_2": DOCUMENTS}).json()["data"] == plain
    ids = site.post("/tokenize", {"prompt": QUERY}).json()["tokens"]
    assert site.post("/score", {"text_1": [ids], "text_2": DOCUMENTS}).json()["data"] == plain
    assert site.post("/score", {"text_1": [ids], "text_2": DOCUMENTS, "model": "embedder"}).status_code == 200


def test_images_are_refused_by_name(make_site):
    image = {"content": [{"type": "image_url", "image_url": {"url": "http://example.org/cat.png"}}]}
    answer = make_site().post("/score", {"text_1": "w1", "text_2": [image]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("MultiModalParam is not supported for TinyClassifier")


def test_options_of_scores(make_site):
    site = make_site("reranker")
    request = {"text_1": QUERY, "text_2": ["w1 w2 w3 w4 w5"]}
    (raw,) = site.post("/score", request | {"use_activation": False}).json()["data"]
    assert [raw["score"]] == score(site, QUERY, request["text_2"], use_activation=False)
    (cut,) = site.post("/score", request | {"max_tokens_per_doc": 2}).json()["data"]
    assert [cut["score"]] == score(site, QUERY, request["text_2"], extra_kwargs={"max_tokens_per_doc": 2})
    assert cut["truncated"]
    assert cut["tokens_dropped"] == 3


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(make_site, path):
    site = make_site("reranker")
    scores = score(site, QUERY, DOCUMENTS)
    order = sorted(range(3), key=lambda index: -scores[index])
    body = site.post(path, {"query": QUERY, "documents": DOCUMENTS}).json()
    assert [item["index"] for item in body["results"]] == order
    assert [item["relevance_score"] for item in body["results"]] == [scores[index] for index in order]
    texts = [{"text": DOCUMENTS[index], "multi_modal": None} for index in order]
    assert [item["document"] for item in body["results"]] == texts
    assert set(body["usage"]) == {"prompt_tokens", "total_tokens"}
    best = site.post(path, {"query": QUERY, "documents": DOCUMENTS, "top_n": 1}).json()["results"]
    assert best == body["results"][:1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_1": "w1"}, "a pair of fields must be given"),
        ({"text_1": ["w1", "w2"], "text_2": ["w1", "w2", "w3"]}, "Input lengths must be either 1:1, 1:N or N:N"),
        ({"text_1": [], "text_2": "w1"}, "At least one text element must be given"),
        ({"text_1": "w1", "text_2": []}, "At least one text_pair element must be given"),
        ({"text_1": "w1", "text_2": "w1", "max_tokens_per_doc": 400}, "max_tokens_per_doc (400) must be less than"),
        ({"text_1": "w1", "text_2": "w1", "instruction": "find"}, "template_kwargs is for a cross-encoder"),
        ({"text_1": "w1", "text_2": "w1", "chat_template": "{{ query }}{{ document }}"}, "Chat template is passed"),
    ],
)
def test_what_score_refuses(make_site, body, message):
    answer = make_site().post("/score", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


def test_no_request_names_a_file_as_template(make_site, tmp_path):
    file = tmp_path / "secret.jinja"
    file.write_text("{{ query }} {{ document }}")
    site = make_site("reranker", trust_request_chat_template=True)
    for template in (str(file), "plain"):
        answer = site.post("/score", {"text_1": "w1", "text_2": "w2", "chat_template": template})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "chat_template must be the template itself"
    source = {"chat_template": "{{ query }} w9 {{ document }}"}
    assert site.post("/score", {"text_1": "w1", "text_2": "w2", **source}).status_code == 200


def test_null_means_the_default(make_site):
    """As clients of Cohere, Jina and LangChain send it."""
    site = make_site("reranker")
    plain = site.post("/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()["results"]
    nulls = {"top_n": None, "max_tokens_per_doc": None, "max_tokens_per_query": None, "return_documents": None}
    assert site.post("/rerank", {"query": QUERY, "documents": DOCUMENTS, **nulls}).json()["results"] == plain


def test_documents_are_left_out_where_nobody_wants_them(make_site):
    site = make_site("reranker")
    request = {"query": QUERY, "documents": DOCUMENTS}
    whole = site.post("/rerank", request | {"return_documents": True}).json()["results"]
    bare = site.post("/rerank", request | {"return_documents": False}).json()["results"]
    assert all(item.pop("document")["text"] in DOCUMENTS for item in whole)
    assert bare == whole


@pytest.mark.parametrize("path", ["/score", "/rerank"])
def test_texts_in_objects(make_site, path):
    """As Cohere's and Jina's first versions write them."""
    site = make_site("reranker")
    sides = {"query": QUERY, "documents": DOCUMENTS} if path == "/rerank" else {"text_1": QUERY, "text_2": DOCUMENTS}
    first, second = sides
    objects = {first: {"text": QUERY}, second: [{"text": text} for text in DOCUMENTS]}
    key = "results" if path == "/rerank" else "data"
    assert site.post(path, objects).json()[key] == site.post(path, sides).json()[key]
    refused = site.post(path, {first: {}, second: DOCUMENTS})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("a text in an object is its `text`, or its `content` in parts")


def test_a_cap_beyond_the_limit_caps_nothing(make_site):
    """Cohere's own default is 4,096 tokens of a document."""
    site = make_site("reranker")
    request = {"query": QUERY, "documents": DOCUMENTS}
    plain = site.post("/rerank", request).json()["results"]
    capped = site.post("/rerank", request | {"max_tokens_per_doc": 4096, "max_tokens_per_query": 4096})
    assert capped.json()["results"] == plain
    long = site.post("/rerank", {"query": QUERY, "documents": [" ".join(["w1"] * 300)], "max_tokens_per_doc": 4096})
    assert long.status_code == 400
    assert "maximum context length" in long.json()["error"]["message"]


def test_only_coheres_second_version_tells_of_units(make_site):
    site = make_site("reranker")
    request = {"query": QUERY, "documents": DOCUMENTS}
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    assert site.post("/v2/rerank", request).json()["meta"] == meta
    assert site.post("/v2/rerank", request | {"documents": ["w1"] * 101}).json()["meta"]["billed_units"] == {
        "search_units": 2
    }
    assert "meta" not in site.post("/rerank", request).json()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_rerank_of_text_embeddings_inference(make_site, path):
    """Its bodies have ``texts``; the answer is the bare list."""
    site = make_site("reranker")
    scores = score(site, QUERY, DOCUMENTS)
    order = sorted(range(3), key=lambda index: -scores[index])
    request = {"query": QUERY, "texts": DOCUMENTS}
    answer = site.post(path, request)
    assert answer.json() == [{"index": index, "score": scores[index]} for index in order]
    assert int(answer.headers["x-tokens-used"]) > 0
    told = site.post(path, request | {"return_text": True}).json()
    assert [item["text"] for item in told] == [DOCUMENTS[index] for index in order]
    logits = score(site, QUERY, DOCUMENTS, use_activation=False)
    raw = site.post(path, request | {"raw_scores": True}).json()
    assert [item["score"] for item in raw] == sorted(logits, reverse=True)


def test_truncation_of_text_embeddings_inference(make_site):
    site = make_site("reranker")
    request = {"query": QUERY, "texts": [" ".join(["w1"] * 20 + ["w2"] * 300)]}
    assert site.post("/rerank", request | {"truncate": False}).status_code == 400
    sides = [
        site.post("/rerank", request | {"truncate": True, "truncation_direction": side}) for side in ("Right", "Left")
    ]
    assert [answer.status_code for answer in sides] == [200, 200]
    assert int(sides[0].headers["x-tokens-dropped"]) == int(sides[1].headers["x-tokens-dropped"]) > 0
    assert sides[0].json() != sides[1].json()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "w1"}, "Object missing required field `documents`"),
        ({"query": "w1", "documents": ["w1"], "texts": ["w1"]}, "give documents or texts, not both"),
        ({"query": "w1", "texts": []}, "At least one text_pair element must be given"),
    ],
)
def test_what_rerank_refuses(make_site, body, message):
    answer = make_site("reranker").post("/rerank", body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
