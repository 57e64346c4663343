"""The requests of vLLM's pages, as their curl commands send them, to models of these names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_engine import FakeRegistry, build_settings

from poolgraph.serving.app import build_app
from poolgraph.serving.observer import NullObserver

EMBED = """{
    "input": "Hello, my name is",
    "model": "intfloat/e5-small"
  }"""
SCORE = """{
    "model": "BAAI/bge-reranker-v2-m3",
    "text_1": "What is machine learning?",
    "text_2": ["ML is a subset of AI.", "The weather is sunny."]
  }"""
RERANK = """{
    "model": "answerdotai/answerai-colbert-small-v1",
    "query": "What is machine learning?",
    "documents": [
      "Machine learning is a subset of AI.",
      "Python is a programming language."
    ]
  }"""


@pytest.fixture
def ask(make_site):
    """Return a function that sends a curl command's body to a model of a kind, under the name that it asks for."""

    def send(kind, path, body):
        site = make_site(kind)
        model = replace(site.model, names=(json.loads(body)["model"],))
        app = build_app(FakeRegistry((model,)), build_settings(), NullObserver())
        answer = replace(site, app=app).ask("POST", path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == model.names[0]
        return answer.json()

    return send


def test_embed(ask):
    (item,) = ask("embedder", "/v1/embeddings", EMBED)["data"]
    assert len(item["embedding"]) == 16


def test_score(ask):
    assert len(ask("reranker", "/score", SCORE)["data"]) == 2


def test_rerank(ask):
    results = ask("tokens", "/rerank", RERANK)["results"]
    assert {item["document"]["text"] for item in results} == set(json.loads(RERANK)["documents"])
