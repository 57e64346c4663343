"""``/v2/embed`` and ``/v1/embed``."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from fake_engine import PROMPTS, SIZE

from poolgraph.config import PoolingParams
from poolgraph.runtime.llm import LLM
from poolgraph.serving.routes_cohere import choose_prompt

TEXTS = ["w1 w2 w3", "w5"]


def embed(site, texts, **params):
    llm = LLM(str(site.model.runner.model.path))
    outputs = llm.embed(texts, pooling_params=PoolingParams(**params), use_tqdm=False)
    return np.stack([output.outputs.data for output in outputs])


def test_coheres_answer(make_site):
    site = make_site()
    kinds = ["float", "binary", "ubinary", "base64"]
    body = site.post("/v2/embed", {"texts": TEXTS, "embedding_types": kinds}).json()
    expected = embed(site, TEXTS)
    assert body["response_type"] == "embeddings_by_type"
    assert body["texts"] == TEXTS
    assert body["meta"]["api_version"] == {"version": "2"}
    assert body["meta"]["billed_units"] == {"input_tokens": 8, "image_tokens": 0}
    assert [row["tokens_used"] for row in body["meta"]["token_use"]] == [5, 3]
    forms = body["embeddings"]
    assert list(forms) == kinds
    assert np.array_equal(np.array(forms["float"], dtype=np.float32), expected)
    assert b"".join(map(base64.b64decode, forms["base64"])) == expected.astype("<f4").tobytes()
    unsigned = np.packbits(expected >= 0, axis=-1)
    assert forms["ubinary"] == unsigned.tolist()
    assert forms["binary"] == (unsigned.astype(int) - 128).tolist()


def test_only_what_was_asked_for_is_there(make_site):
    forms = make_site().post("/v2/embed", {"texts": TEXTS}).json()["embeddings"]
    assert list(forms) == ["float"]


def test_the_older_answer_is_a_list(make_site):
    site = make_site()
    for more in ({}, {"embedding_types": None}, {"embedding_types": []}):
        body = site.post("/v1/embed", {"texts": TEXTS} | more).json()
        assert body["response_type"] == "embeddings_floats"
        assert np.array_equal(np.array(body["embeddings"], dtype=np.float32), embed(site, TEXTS))
        assert body["texts"] == TEXTS
        assert body["id"].startswith("embd-")
        assert body["meta"]["api_version"] == {"version": "1"}
        assert body["meta"]["billed_units"] == {"input_tokens": 8, "image_tokens": 0}


def test_the_older_answer_by_type_is_that_of_today(make_site):
    site = make_site()
    request = {"texts": TEXTS, "embedding_types": ["float", "ubinary"], "input_type": "search_query"}
    old, new = (site.post(path, request).json() for path in ("/v1/embed", "/v2/embed"))
    assert old["response_type"] == new["response_type"] == "embeddings_by_type"
    assert old["embeddings"] == new["embeddings"]
    assert (old["meta"].pop("api_version"), new["meta"].pop("api_version")) == ({"version": "1"}, {"version": "2"})
    assert old["meta"] == new["meta"]


def test_the_document_has_both_answers(make_site):
    document = make_site().get("/openapi.json").json()
    answer = document["paths"]["/v1/embed"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    names = {"embeddings_floats": "CohereFloatsResponse", "embeddings_by_type": "CohereEmbedResponse"}
    places = {kind: f"#/components/schemas/{name}" for kind, name in names.items()}
    assert answer["discriminator"] == {"propertyName": "response_type", "mapping": places}


def test_input_types_are_prompts(make_site):
    site = make_site()
    for name, prompt in (
        ("query", "query"),
        ("search_query", "query"),
        ("search_document", "document"),
        ("odd", "odd"),
    ):
        body = site.post("/v2/embed", {"texts": TEXTS, "input_type": name}).json()
        expected = embed(site, [PROMPTS[prompt] + text for text in TEXTS])
        assert np.array_equal(np.array(body["embeddings"]["float"], dtype=np.float32), expected)
    answer = site.post("/v2/embed", {"texts": TEXTS, "input_type": "clustering"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Unsupported input_type 'clustering'. Supported values: document, odd, query"
    )


def test_a_model_without_prompts_takes_coheres_input_types():
    assert choose_prompt("search_query", {}) == choose_prompt("query", {}, has_sides=True) == ""
    with pytest.raises(ValueError, match="Unsupported input_type 'query'"):
        choose_prompt("query", {})


def test_texts_in_parts(make_site):
    site = make_site()
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    assert (
        site.post("/v2/embed", {"inputs": parts}).json()["embeddings"]
        == (site.post("/v2/embed", {"texts": TEXTS}).json()["embeddings"])
    )


def test_truncation(make_site):
    site = make_site()
    long = " ".join(f"w{number}" for number in range(50))
    llm = LLM(str(site.model.runner.model.path))
    for truncate, side in (("END", "right"), ("START", "left")):
        for limit, keep in ((None, -1), (6, 6)):
            request = {"texts": [long], "truncate": truncate, "max_tokens": limit}
            body = site.post("/v2/embed", request).json()
            options = {"truncate_prompt_tokens": keep, "truncation_side": side}
            (expected,) = llm.embed([long], tokenization_kwargs=options, use_tqdm=False)
            assert np.array_equal(np.array(body["embeddings"]["float"][0], dtype=np.float32), expected.outputs.data)
            assert body["meta"]["token_use"][0]["truncated"]
    answer = site.post("/v2/embed", {"texts": [long], "truncate": "NONE"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("This model's maximum context length is 40 tokens.")
    answer = site.post("/v2/embed", {"texts": ["w1", "w1 w2 w3 w4"], "truncate": "NONE", "max_tokens": 5})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Input of 6 tokens exceeds max_tokens=5 with truncate=NONE. Set truncate to END or START to allow truncation."
    )
    assert site.post("/v2/embed", {"texts": ["w1 w2 w3"], "truncate": "NONE", "max_tokens": 5}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_truncate_that_is_null_is_the_default(make_site, path):
    site = make_site()
    long = " ".join(["w1"] * 50)
    null, left_out = (site.post(path, {"texts": [long]} | more) for more in ({"truncate": None}, {}))
    assert (null.status_code, null.json()["embeddings"]) == (200, left_out.json()["embeddings"])


@pytest.mark.parametrize("max_tokens", [40, 41, 512, 2**40])
def test_a_cap_above_the_models_limit_caps_nothing(make_site, max_tokens):
    site = make_site()
    long = " ".join(f"w{number}" for number in range(50))
    for truncate in ("END", "START"):
        request = {"texts": [long], "truncate": truncate}
        capped = site.post("/v2/embed", request | {"max_tokens": max_tokens})
        assert capped.status_code == 200
        assert capped.json()["embeddings"] == site.post("/v2/embed", request).json()["embeddings"]
        assert capped.json()["meta"]["token_use"][0]["tokens_used"] == 40
    request = {"truncate": "NONE", "max_tokens": max_tokens}
    assert site.post("/v2/embed", request | {"texts": ["w1"]}).status_code == 200
    refused = site.post("/v2/embed", request | {"texts": [long]})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("This model's maximum context length is 40 tokens.")


def test_output_dimension(make_site):
    site = make_site()
    body = site.post("/v2/embed", {"texts": TEXTS, "output_dimension": 8}).json()
    assert np.array_equal(np.array(body["embeddings"]["float"], dtype=np.float32), embed(site, TEXTS, dimensions=8))
    answer = site.post("/v2/embed", {"texts": TEXTS, "output_dimension": 12, "embedding_types": ["binary"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Embedding dimension must be a multiple of 8 for binary embedding types, but got 12."
    )
    assert SIZE > 12


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Exactly one of texts, images, or inputs must be provided, and it must be non-empty"),
        ({"texts": []}, "Exactly one of texts, images, or inputs must be provided, and it must be non-empty"),
        ({"texts": ["a"], "images": ["b"]}, "Exactly one of texts, images, or inputs must be provided"),
        ({"images": ["data:image/png;base64,"]}, "MultiModalParam is not supported for TinyClassifier"),
    ],
)
def test_what_is_refused(make_site, body, message):
    answer = make_site().post("/v2/embed", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
