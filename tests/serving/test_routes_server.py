"""Models, health, readiness, metrics, tokens, documents; which routes there are; several models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from poolgraph import __version__
from poolgraph.serving.engine_errors import NotReady
from poolgraph.serving.metrics import PrometheusObserver

ALWAYS = {
    *("/pooling", "/tokenize", "/detokenize", "/info", "/v1/models", "/version", "/health", "/ready", "/metrics"),
    *("/openapi.json", "/docs", "/ping", "/v1/models/{id}", "/"),
}
SCORES = {"/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"}
EMBEDS = {"/v1/embeddings", "/v1/embed", "/v2/embed", "/embed", "/similarity"}


@pytest.mark.parametrize(
    ("kinds", "routes"),
    [
        (("embedder",), EMBEDS | SCORES | {"/embed_all"}),
        (("splade",), EMBEDS | SCORES | {"/embed_sparse"}),
        (("tokens",), SCORES | {"/v1/embeddings", "/embed_all"}),
        (("classifier",), {"/classify", "/predict"}),
        (("reranker",), {"/classify", "/predict"} | SCORES),
        (("tagger",), set()),
        (("embedder", "classifier"), EMBEDS | SCORES | {"/embed_all", "/classify", "/predict"}),
    ],
)
def test_routes_follow_what_the_models_do(make_site, kinds, routes):
    site = make_site(*kinds)
    every = EMBEDS | SCORES | ALWAYS | {"/embed_all", "/embed_sparse", "/classify", "/predict"}
    there = {path for path in every if site.ask("PUT", path).status_code == 405}
    assert there == routes | ALWAYS
    assert {*site.get("/openapi.json").json()["paths"]} == there - {"/openapi.json", "/docs"}


def test_a_route_that_is_not_there(make_site):
    answer = make_site("classifier").post("/v1/embeddings", {"input": "w1"})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Not Found"}
    answer = make_site().get("/score")
    assert answer.status_code == 405
    assert answer.json() == {"detail": "Method Not Allowed"}
    assert answer.headers["allow"] == "POST"


def test_models_by_all_of_their_names_but_paths(make_site):
    site = make_site("embedder", "classifier")
    site.model.names = ("/srv/models/embedder", "embedder", "small")
    try:
        rows = site.get("/v1/models").json()["data"]
        assert [(row["id"], row["root"]) for row in rows] == [
            ("embedder", "embedder"),
            ("small", "embedder"),
            ("classifier", "classifier"),
        ]
        assert rows[0]["max_model_len"] == 40
        by_path = site.post("/v1/embeddings", {"input": "w1", "model": "/srv/models/embedder"})
        assert by_path.status_code == 200
        assert site.post("/v1/embeddings", {"input": "w1"}).json()["model"] == "embedder"
    finally:
        site.model.names = ("embedder",)


def test_a_model_by_its_name(make_site):
    site = make_site("embedder", "classifier")
    site.model.names = ("/srv/models/embedder", "embedder", "org/small model")
    try:
        cards = site.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == ["embedder", "org/small model", "classifier"]
        assert site.get("/v1/models/embedder").json() == cards[0]
        assert site.get("/v1/models/org/small%20model").json() == cards[1]
        assert site.get("/v1/models/org%2Fsmall%20model").json() == cards[1]
        for name in ("gpt-4", "{id}", "embedder/", "/srv/models/embedder", "%2Fsrv/models/embedder"):
            assert site.get(f"/v1/models/{name}").status_code == 404
    finally:
        site.model.names = ("embedder",)


def test_a_model_that_is_not_there(make_site):
    site = make_site()
    answer = site.get("/v1/models/gpt-4")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `gpt-4` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    assert site.get("/v1/models/").json() == {"detail": "Not Found"}
    refused = site.post("/v1/models/embedder", {})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
    operation = site.get("/openapi.json").json()["paths"]["/v1/models/{id}"]["get"]
    assert operation["parameters"] == [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    assert set(operation["responses"]) == {"200", "404"}


def test_models_are_chosen_by_name(make_site):
    site = make_site("embedder", "chatty", "classifier")
    for name in ("embedder", "chatty"):
        body = site.post("/v1/embeddings", {"input": "w1", "model": name}).json()
        assert body["model"] == name
    assert [model.num_calls for model in site.models] == [1, 1, 0]
    assert site.post("/classify", {"input": "w1"}).json()["model"] == "classifier"
    unclear = site.post("/v1/embeddings", {"input": "w1"})
    assert unclear.status_code == 404
    assert unclear.json()["error"]["message"].startswith("model is required where several are served")


def test_pairs_go_to_the_model_that_is_made_for_them(make_site):
    site = make_site("embedder", "reranker")
    assert site.post("/rerank", {"query": "w1", "documents": ["w2"]}).json()["model"] == "reranker"
    assert site.post("/score", {"text_1": "w1", "text_2": ["w2"]}).json()["model"] == "reranker"
    assert site.post("/v1/embeddings", {"input": "w1"}).json()["model"] == "embedder"
    assert make_site("embedder", "plain").post("/rerank", {"query": "w1", "documents": ["w2"]}).status_code == 404


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/"), ("GET", "/ping"), ("POST", "/ping")])
def test_health(make_site, method, path):
    site = make_site()
    answer = site.ask(method, path)
    assert (answer.status_code, answer.content) == (200, b"")
    site.model.is_alive = False
    try:
        assert site.ask(method, path).status_code == 503
        assert site.get("/ready").status_code == 503
    finally:
        site.model.is_alive = True


def test_ready(make_site):
    site = make_site()
    assert site.get("/ready").json() == {"status": "ready"}
    site.model.failure = NotReady("embedder is not well: its probe differs")
    answer = site.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["error"] == {
        "message": "embedder is not well: its probe differs",
        "type": "ServiceUnavailable",
        "param": None,
        "code": 503,
    }


def test_metrics_and_version(make_site):
    site = make_site(observer=PrometheusObserver())
    site.post("/v1/embeddings", {"input": "w1"})
    answer = site.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'poolgraph_encoding_seconds_count{model="embedder"} 1.0' in answer.text
    assert site.get("/version").json() == {"version": __version__}


def test_tokenize(make_site):
    site = make_site("chatty")
    body = site.post("/tokenize", {"prompt": "w1 w2", "return_token_strs": True}).json()
    assert body["count"] == 4
    assert body["max_model_len"] == 40
    assert body["token_strs"] == ["[CLS]", "w1", "w2", "[SEP]"]
    plain = site.post("/tokenize", {"prompt": "w1 w2", "add_special_tokens": False}).json()
    assert plain["tokens"] == body["tokens"][1:3]
    assert plain["token_strs"] is None
    long = site.post("/tokenize", {"prompt": "w1 " * 3000}).json()
    assert long["count"] == 3002
    talk = site.post("/tokenize", {"messages": [{"role": "user", "content": "w1"}]}).json()
    assert (
        talk["tokens"] == site.post("/tokenize", {"prompt": "u w1 . a", "add_special_tokens": False}).json()["tokens"]
    )


def test_detokenize(make_site):
    site = make_site()
    tokens = site.post("/tokenize", {"prompt": "w1 w2"}).json()["tokens"]
    assert site.post("/detokenize", {"tokens": tokens}).json() == {"prompt": "[CLS] w1 w2 [SEP]"}
    many = site.post("/detokenize", {"tokens": tokens[1:2] * 2000}).json()["prompt"]
    assert many == " ".join(["w1"] * 2000)
    for wrong in (144, 10**9):
        answer = site.post("/detokenize", {"tokens": [wrong]})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(f"Token id {wrong} is out of vocabulary")
    assert site.post("/detokenize", {"tokens": [-1]}).status_code == 400


def test_documents_can_be_switched_off(make_site):
    site = make_site(allow_docs=False)
    assert site.get("/docs").status_code == 404
    assert site.get("/openapi.json").status_code == 404


def test_the_page_shows_every_route_and_loads_nothing(make_site):
    site = make_site("embedder", "classifier")
    page = site.get("/docs").text
    for path in site.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page
    assert "truncate_prompt_tokens" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_document_describes_what_is_decoded(make_site):
    document = make_site("embedder", "classifier").get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    fields = schemas["EmbeddingsRequest"]["properties"]
    assert fields["encoding_format"]["enum"] == ["base64", "bytes", "bytes_only", "float"]
    assert fields["dimensions"]["description"].startswith("Width of a shortened embedding")
    assert fields["truncate_prompt_tokens"]["description"].startswith("Tokens kept of a longer text")
    assert schemas["RerankRequest"]["required"] == ["query"]
    references = {part.split('"')[0] for part in str(document).replace("'", '"').split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    embeddings = document["paths"]["/v1/embeddings"]["post"]
    assert set(embeddings["responses"]) == {"200", "400", "404", "413", "415", "429", "500", "501", "503", "504"}


def find_schemas(node: Any) -> Iterator[dict[str, Any]]:
    """The parts of a document that describe a value's type."""
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from find_schemas(part)
    if isinstance(node, dict) and isinstance(node.get("type", ""), str):
        yield node


def test_generators_of_clients_understand_the_document(make_site):
    """What openapi-python-client 0.29 fails on: arrays of nothing, ``items: false``, values that differ in case."""
    site = make_site("embedder", "classifier", "reranker")
    document = site.get("/openapi.json").json()
    schemathesis.openapi.from_asgi("/openapi.json", site.app).validate()
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})
    found = list(find_schemas(document))
    arrays = [schema for schema in found if schema.get("type") == "array"]
    assert len(arrays) > 20
    assert all(isinstance(schema.get("items", {}), dict) for schema in found)
    assert all("items" in schema or "prefixItems" in schema for schema in arrays)
    for schema in found:
        values = [str(value).lower() for value in schema.get("enum", [])]
        assert len(values) == len(set(values)), schema
    schemas = document["components"]["schemas"]
    assert schemas["TeiEmbedRequest"]["properties"]["truncation_direction"]["enum"] == ["Left", "Right"]
    assert schemas["ChunkRange"]["properties"]["token_range"]["maxItems"] == 2
    metrics = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert metrics == {"text/plain": {"schema": {"type": "string"}}}
