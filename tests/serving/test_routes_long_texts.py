"""What becomes of texts beyond the limit, by the server's rule and by the request's own word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeRegistry, build_settings

from poolgraph.runtime.long_texts import LongTexts
from poolgraph.serving.app import build_app
from poolgraph.serving.observer import NullObserver

LONG = " ".join(f"w{number}" for number in range(60))
LONGER = f"{LONG} {LONG} {LONG}"


@pytest.fixture
def make_ruled_site(make_site):
    """Return a function that serves a model under a rule for long texts."""

    def make(rule, kind="embedder"):
        site = make_site(kind)
        runner = replace(site.model.runner, long_texts=LongTexts(kind=rule, overlap=4))
        model = replace(site.model, runner=runner)
        return replace(site, app=build_app(FakeRegistry((model,)), build_settings(), NullObserver()))

    return make


def test_chunks_are_told(make_ruled_site):
    body = make_ruled_site("chunk").post("/v1/embeddings", {"input": [LONG, "w1"]}).json()
    long, short = body["data"]
    assert (long["num_chunks"], short["num_chunks"]) == (2, 1)
    assert long["tokens_used"] == 60 + 4 + 2 * 2
    assert not long["truncated"]
    assert body["usage"]["prompt_tokens"] == long["tokens_used"] + short["tokens_used"]
    assert np.linalg.norm(long["embedding"]) == pytest.approx(1, abs=1e-6)


def test_texts_without_special_tokens_stay_whole(make_ruled_site):
    site = make_ruled_site("chunk")
    (item,) = site.post("/v1/embeddings", {"input": "w1 w2", "add_special_tokens": False}).json()["data"]
    assert (item["tokens_used"], item["num_chunks"]) == (2, 1)
    assert site.post("/v1/embeddings", {"input": LONG, "add_special_tokens": False}).status_code == 400


def test_truncation_by_the_servers_rule_is_told(make_ruled_site):
    (item,) = make_ruled_site("truncate").post("/v1/embeddings", {"input": LONG}).json()["data"]
    assert (item["truncated"], item["tokens_used"], item["tokens_dropped"]) == (True, 40, 22)


@pytest.mark.parametrize("rule", ["truncate", "chunk"])
@pytest.mark.parametrize(
    ("path", "lets", "refuses"),
    [
        ("/v2/embed", {"texts": [LONG], "truncate": "END"}, {"texts": [LONG], "truncate": "NONE"}),
        ("/embed", {"inputs": LONG}, {"inputs": LONG, "truncate": False}),
    ],
)
def test_a_request_may_have_long_texts_refused(make_ruled_site, rule, path, lets, refuses):
    site = make_ruled_site(rule)
    assert site.post(path, lets).status_code == 200
    answer = site.post(path, refuses)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("This model's maximum context length is 40 tokens.")


@pytest.mark.parametrize(
    ("kind", "path", "lets", "refuses"),
    [
        ("classifier", "/predict", {"inputs": LONG}, {"truncate": False}),
        ("reranker", "/predict", {"inputs": ["w1", LONGER]}, {"truncate": False}),
        (
            "embedder",
            "/similarity",
            {"inputs": {"source_sentence": "w1", "sentences": [LONG]}},
            {"parameters": {"truncate": False}},
        ),
    ],
)
def test_a_request_may_have_long_texts_and_pairs_refused_where_the_rule_cuts(
    make_ruled_site, kind, path, lets, refuses
):
    site = make_ruled_site("truncate", kind)
    limit = site.model.manifest.limits.max_model_len
    cut = site.post(path, lets)
    assert cut.status_code == 200
    assert int(cut.headers["x-tokens-dropped"]) > 0
    answer = site.post(path, lets | refuses)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"This model's maximum context length is {limit} tokens.")


@pytest.mark.parametrize(
    ("path", "body", "items"),
    [
        ("/score", {"text_1": "w1", "text_2": LONGER}, "data"),
        ("/rerank", {"query": "w1", "documents": [LONGER]}, "results"),
    ],
)
@pytest.mark.parametrize(("own", "used"), [({}, 128), ({"truncate_prompt_tokens": 9}, 9)])
def test_pairs_are_cut_by_the_servers_rule_unless_the_request_says_where(make_ruled_site, path, body, items, own, used):
    (item,) = make_ruled_site("truncate", "reranker").post(path, body | own).json()[items]
    assert (item["truncated"], item["tokens_used"], item["tokens_dropped"]) == (True, used, 184 - used)
