"""``/pooling`` and ``/classify``."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from poolgraph.config import PoolingParams
from poolgraph.runtime.llm import LLM


def encode(site, text, task, **params):
    llm = LLM(str(site.model.runner.model.path))
    (output,) = llm.encode([text], pooling_task=task, pooling_params=PoolingParams(**params), use_tqdm=False)
    return output.outputs.data


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("embedder", "embed"),
        ("embedder", "token_embed"),
        ("embedder", None),
        ("classifier", "classify"),
        ("classifier", "token_classify"),
        ("tagger", None),
    ],
)
def test_pooling_by_task(make_site, kind, task):
    site = make_site(kind)
    body = site.post("/pooling", {"input": "w1 w2", "task": task}).json()
    assert body["id"].startswith("pooling-")
    (item,) = body["data"]
    assert item["object"] == "pooling"
    expected = encode(site, "w1 w2", task or site.model.manifest.default_task)
    assert np.array_equal(np.array(item["data"], dtype=np.float32), expected)


def test_pooling_in_base64_and_bytes(make_site):
    site = make_site()
    expected = encode(site, "w1 w2", "token_embed").tobytes()
    request = {"input": "w1 w2", "task": "token_embed"}
    (item,) = site.post("/pooling", request | {"encoding_format": "base64"}).json()["data"]
    assert base64.b64decode(item["data"]) == expected
    assert site.post("/pooling", request | {"encoding_format": "bytes"}).content == expected


def test_pooling_without_activation(make_site):
    site = make_site("classifier")
    (item,) = site.post("/pooling", {"input": "w1", "use_activation": False}).json()["data"]
    expected = encode(site, "w1", "classify", use_activation=False)
    assert np.array_equal(np.array(item["data"], dtype=np.float32), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 4}, "dimensions is currently not supported"),
        ({"task": "walk"}, "Unsupported task: 'walk' Supported tasks: ('embed', 'token_embed')"),
        ({"task": "score"}, "`score` task was removed; use `classify` instead."),
        ({"task": "plugin", "data": {}}, "No IOProcessor plugin installed."),
        ({"data": {}}, "The 'data' field is only supported for the 'plugin' pooling task."),
        ({"normalize": True}, "Parameter `normalize` was removed; use `use_activation` instead."),
    ],
)
def test_what_pooling_refuses(make_site, fields, message):
    answer = make_site().post("/pooling", {"input": "w1"} | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
    assert answer.json()["error"]["type"] == "BadRequestError"


def test_classify(make_site):
    site = make_site("classifier")
    body = site.post("/classify", {"input": ["w1", "w2 w3"]}).json()
    assert body["id"].startswith("classify-")
    for item, text in zip(body["data"], ["w1", "w2 w3"], strict=True):
        expected = encode(site, text, "classify")
        assert np.array_equal(np.array(item["probs"], dtype=np.float32), expected)
        assert item["num_classes"] == 3
        assert item["label"] == ("negative", "neutral", "positive")[int(np.argmax(expected))]
    raw = site.post("/classify", {"input": "w1", "use_activation": False}).json()["data"][0]["probs"]
    assert sum(raw) != pytest.approx(1)
