"""What becomes of texts beyond the limit, by the server's rule and by the request's own word."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from fake_engine import SIZE, FakeRegistry, build_settings

from poolgraph.config import PoolingParams
from poolgraph.runtime.long_texts import LongTexts
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.tokenization import TokenizationOptions
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


@pytest.mark.parametrize("dimensions", [None, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_windows_are_normalized_before_they_are_averaged(find_model, normalize, dimensions):
    """Windows of 38 and 26 tokens are normalized before they are averaged, and their average again."""
    runner = replace(find_model("embedder").runner, long_texts=LongTexts(kind="chunk", overlap=4))
    params = PoolingParams(use_activation=normalize, dimensions=dimensions)
    options = RequestOptions(pooling_params=params, use_tqdm=False, tokenization=TokenizationOptions())
    work = runner.answer_prompts([LONG, "w1"], "embed", options, count())
    assert [text.num_tokens for text in next(work).encoded] == [38 + 2, 26 + 2, 1 + 2]
    raw = np.random.default_rng(3).normal(size=(3, SIZE)).astype(np.float32) * [[1], [9], [4]]
    with pytest.raises(StopIteration) as done:
        work.send(raw.astype(np.float32))
    parts = raw[:, :dimensions].astype(np.float64)
    if normalize:
        parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    expected = np.average(parts[:2], axis=0, weights=[38, 26])
    if normalize:
        expected /= np.linalg.norm(expected)
    long, short = (output.outputs.data for output in done.value.value)
    np.testing.assert_allclose(long, expected, rtol=1e-5)
    np.testing.assert_allclose(short, parts[2], rtol=1e-6)


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
