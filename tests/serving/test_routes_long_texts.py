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


@pytest.fixture
def make_ruled_site(make_site):
    """Return a function that serves the embedder under a rule for long texts."""

    def make(kind):
        site = make_site()
        runner = replace(site.model.runner, long_texts=LongTexts(kind=kind, overlap=4))
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
