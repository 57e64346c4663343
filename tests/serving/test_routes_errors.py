"""Every row of the table of errors: its status, its type, its message, its headers; and that nothing leaks."""

from __future__ import annotations

import gc
import logging

import msgspec
import numpy as np
import pytest
from fake_batches import Recorder

from poolgraph.errors import InputError, SessionError, TaskNotSupported
from poolgraph.runtime import finish
from poolgraph.serving import dispatcher
from poolgraph.serving.engine_errors import AnswerTooLarge, DeadlineExceeded, EngineStopped, QueueFull
from poolgraph.serving.http_errors import ERROR_ROWS

LONG = " ".join(["w1"] * 50)


def fail(site, error):
    site.model.failure = error
    answer = site.post("/v1/embeddings", {"input": "w1"})
    return answer, answer.json()["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (InputError("bad text", parameter="input", value=3), 400, "BadRequestError", "bad text"),
        (TaskNotSupported("not this"), 400, "BadRequestError", "not this"),
        (QueueFull(7, num_tokens=9, limit=8), 429, "TooManyRequests", "the queue is full"),
        (DeadlineExceeded(2.0), 504, "DeadlineExceeded", "the request was not answered within its 2 s"),
        (AnswerTooLarge(9, 8), 413, "RequestTooLarge", "the answers of this request"),
        (EngineStopped("it is closing"), 503, "ServiceUnavailable", "it is closing"),
        (SessionError("/srv/secret/model.onnx: NaN"), 500, "InternalServerError", "The model could not answer"),
        (KeyError("/srv/secret"), 500, "InternalServerError", "The model could not answer"),
    ],
)
def test_errors_of_the_engine(make_site, caplog, error, status, kind, message):
    with caplog.at_level(logging.CRITICAL, logger="poolgraph.serving"):
        answer, body = fail(make_site(), error)
    assert answer.status_code == body["code"] == status
    assert body["type"] == kind
    assert body["message"].startswith(message)
    assert body["param"] == ("input" if isinstance(error, InputError) else None)
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
    assert "/srv" not in answer.text
    assert "Traceback" not in answer.text


def test_what_is_hidden_is_logged(make_site, caplog):
    fail(make_site(), SessionError("the session failed"))
    (record,) = [record for record in caplog.records if record.name == "poolgraph.serving"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_every_row_is_met():
    met = {"InvalidBody", "InputError", "TaskNotSupported", "ModelNotFound", "RequestTooLarge", "UnsupportedContent"}
    met |= {"QueueFull", "TaskNotServed", "EngineStopped", "NotReady", "DeadlineExceeded", "SessionError", "Exception"}
    met |= {"AnswerTooLarge"}
    assert {kind.__name__ for kind, _ in ERROR_ROWS} == met


def test_the_models_path_is_not_told(make_site):
    site = make_site()
    path = str(site.model.runner.model.path)
    answer, body = fail(site, InputError(f"Model {path!r} cannot"))
    assert path not in answer.text
    assert body["message"] == "Model 'embedder' cannot"


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (
            {"input": LONG},
            "This model's maximum context length is 40 tokens. However, your prompt contains 52",
            "input_tokens",
        ),
        (
            {"input": "w1", "dimensions": 17},
            "Model 'embedder' only supports dimensions in range [1, 16], got 17.",
            "dimensions",
        ),
        (
            {"input": "w1", "truncate_prompt_tokens": 41},
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
            "truncate_prompt_tokens",
        ),
        ({"input": []}, "You must pass at least one prompt", "prompts"),
        ({}, "exactly one of a text (`input`, `prompt`) and `messages` must be given", "input"),
        ({"input": [1, 500]}, "Token id 500 is out of vocabulary: ids run from 0 to", "prompt_token_ids"),
        ({"input": ["w1", 3]}, "prompts[1] must be a str", "prompts"),
        (
            {"input": "w1", "normalize": True},
            "Parameter `normalize` was removed; use `use_activation` instead.",
            "normalize",
        ),
        ({"input": "w1", "embed_dtype": "fp8_e4m3"}, "embed_dtype fp8_e4m3 is not supported", "embed_dtype"),
        ({"input": "w1", "padding": "max_length"}, "padding max_length is not supported", "padding"),
        ({"input": "w1", "mm_processor_kwargs": {"a": 1}}, "MultiModalParam is not supported", "mm_processor_kwargs"),
        (
            {"input": "w1", "late_chunking_params": {"chunk_size": 2}},
            "Late chunking requires token_embed",
            "late_chunking_params",
        ),
    ],
)
def test_requests_that_are_not_acceptable(make_site, body, message, param):
    answer = make_site().post("/v1/embeddings", body)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert error["message"].startswith(message)
    assert error["type"] == "BadRequestError"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "json_invalid"),
        (b'{"input": ', "json_invalid"),
        (b"\xff\xfe", "json_invalid"),
        (b"[]", "'loc': ('body',)"),
        (b'{"input": 5}', "'loc': ('body', 'input')"),
        (b'{"input": "w1", "priority": "high"}', "'loc': ('body', 'priority')"),
        (b'{"input": "w1", "truncate_prompt_tokens": -2}', "'loc': ('body', 'truncate_prompt_tokens')"),
        (b'{"input": "w1", "encoding_format": "hex"}', "Invalid enum value 'hex'"),
        (b'{"input": "w1", "dimensions": 0}', "'loc': ('body', 'dimensions')"),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    ],
)
def test_bodies_of_another_shape(make_site, content, said):
    headers = {"content-type": "application/json"}
    answer = make_site().ask("POST", "/v1/embeddings", content=content, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert error["type"] == "Bad Request"
    assert error["message"].startswith("1 validation error:\n  {'type': ")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("text/plain", 415),
        ("multipart/form-data", 415),
    ],
)
def test_content_types(make_site, kind, status):
    answer = make_site().ask("POST", "/v1/embeddings", content=b'{"input": "w1"}', headers={"content-type": kind})
    assert answer.status_code == status


@pytest.mark.parametrize("field", ["data", "chat_template_kwargs"])
def test_a_body_nested_without_end(make_site, field):
    deep = b"[" * 100_000 + b"]" * 100_000
    content = b'{"input": "w1", "%s": {"a": %s}}' % (field.encode(), deep)
    answer = make_site().ask("POST", "/pooling", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "Bad Request"


def test_a_text_that_is_half_a_character(make_site):
    headers = {"content-type": "application/json"}
    answer = make_site().ask("POST", "/v1/embeddings", content=b'{"input": "w1\\ud800"}', headers=headers)
    assert answer.status_code == 400


def test_models_that_are_not_there_or_cannot(make_site):
    site = make_site("embedder", "classifier")
    answer = site.post("/v1/embeddings", {"input": "w1", "model": "gpt-4"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `gpt-4` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    answer = site.post("/v1/embeddings", {"input": "w1", "model": "classifier"})
    assert answer.status_code == 501
    assert answer.json()["error"]["type"] == "NotImplementedError"
    assert answer.json()["error"]["message"].startswith("The model `classifier` does not support the Embeddings API.")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/embed", {"texts": ["w1"]}),
        ("/embed", {"inputs": "w1"}),
        ("/similarity", {"inputs": {"source_sentence": "w1", "sentences": ["w2"]}}),
        ("/classify", {"input": "w1"}),
        ("/predict", {"inputs": "w1"}),
    ],
)
def test_a_model_of_tokens_does_not_embed_texts(make_site, path, body):
    site = make_site("embedder", "classifier", "tokens")
    answer = site.post(path, body | {"model": "tokens"})
    assert answer.status_code == 501
    assert site.post("/v1/embeddings", {"input": "w1", "model": "tokens"}).status_code == 200


def test_a_model_without_scores(make_site):
    site = make_site("embedder", "classifier")
    answer = site.post("/score", {"text_1": "w1", "text_2": "w2", "model": "classifier"})
    assert answer.status_code == 501


@pytest.mark.parametrize(
    ("path", "small", "large"),
    [
        ("/v1/embeddings", {"input": ["w1"] * 3}, {"input": ["w1"] * 4}),
        ("/v1/embeddings", {"input": "w" * 20}, {"input": "w" * 21}),
        ("/v1/embeddings", {"input": [2] * 5}, {"input": [2] * 6}),
        ("/v2/embed", {"texts": ["w1"] * 3}, {"texts": ["w1"] * 4}),
        ("/score", {"text_1": "w1", "text_2": ["w1"] * 3}, {"text_1": "w1", "text_2": ["w1"] * 4}),
        ("/rerank", {"query": "w1", "documents": ["w1"] * 3}, {"query": "w1", "documents": ["w1"] * 4}),
        ("/tokenize", {"prompt": "w" * 20}, {"prompt": "w" * 21}),
        ("/detokenize", {"tokens": [5] * 5}, {"tokens": [5] * 6}),
        ("/embed", {"inputs": ["w1"] * 3}, {"inputs": ["w1"] * 4}),
        ("/predict", {"inputs": ["w1", "w" * 20]}, {"inputs": ["w1", "w" * 21]}),
        ("/predict", {"inputs": ["w" * 20, "w1"]}, {"inputs": ["w" * 21, "w1"]}),
        (
            "/similarity",
            {"inputs": {"source_sentence": "w" * 20, "sentences": ["w1"]}},
            {"inputs": {"source_sentence": "w" * 21, "sentences": ["w1"]}},
        ),
        (
            "/similarity",
            {"inputs": {"source_sentence": "w1", "sentences": ["w" * 20]}},
            {"inputs": {"source_sentence": "w1", "sentences": ["w" * 21]}},
        ),
    ],
)
def test_limits_of_the_server(make_site, path, small, large):
    site = make_site("reranker" if path == "/predict" else "embedder", max_texts=3, max_text_chars=20)
    assert site.post(path, small).status_code == 200
    answer = site.post(path, large)
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "RequestTooLarge"
    assert "--max-text" in answer.json()["error"]["message"]


@pytest.mark.parametrize("parts", [False, True])
def test_messages_are_measured_before_a_template_leaves_them_out(make_site, parts):
    site = make_site("chatty", max_text_chars=20, trust_request_chat_template=True)
    for size, status in ((20, 200), (21, 413)):
        content = [{"type": "text", "text": "w" * size}] if parts else "w" * size
        body = {"messages": [{"role": "user", "content": content}], "chat_template": "w1"}
        assert site.post("/v1/embeddings", body).status_code == status


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("br", 415), ("identity", 200), ("Identity", 200)])
def test_a_compressed_body_is_refused_as_one(make_site, coding, status):
    answer = make_site().post("/v1/embeddings", {"input": "w1"}, headers={"content-encoding": coding})
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["message"] == f"Bodies are taken uncompressed, not as {coding!r}"


def test_the_collector_rests_while_a_large_body_is_decoded_and_no_longer(make_site, monkeypatch):
    enabled = []

    def decode(data):
        enabled.append(gc.isenabled())
        raise msgspec.DecodeError("bad")

    monkeypatch.setattr(dispatcher, "_build_decoder", lambda endpoint: endpoint.body_type and decode)
    site = make_site()
    (answer,) = site.post_all("/v1/embeddings", [b"x" * (1 << 20) + b"x"])
    site.post_all("/v1/embeddings", [b"x"])
    assert answer.status_code == 400
    assert enabled == [False, True]
    assert gc.isenabled()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_becomes_nan_after_the_model_does_not_leave_either(make_site, monkeypatch, number):
    site = make_site("embedder", observer=(seen := Recorder()))
    embed = {"input": "w1"}
    asked = [("/v1/embeddings", embed | {"encoding_format": form}) for form in ("float", "base64", "bytes")]
    asked += [("/v2/embed", {"texts": ["w1"], "embedding_types": ["ubinary"]}), ("/embed", {"inputs": "w1"})]
    monkeypatch.setattr(finish, "finish_embeddings", lambda raw, **_: np.full_like(raw, number))
    for path, body in asked:
        answer = site.post(path, body)
        assert answer.status_code == 500, path
    assert seen.of("failed") == [("nan",)] * len(asked)


def test_a_guessed_path_is_not_confirmed(make_site):
    site = make_site()
    path = str(site.model.runner.model.path)
    answer = site.post("/v1/embeddings", {"input": "w1", "model": path})
    assert answer.json()["error"]["message"] == f"The model `{path}` does not exist."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [[]] * 9}),
        ("/v1/embeddings", {"input": [["w1"]] * 9}),
        ("/v1/embeddings", {"messages": [{"role": "user"}] * 9}),
        ("/v1/embeddings", {"messages": [[{"role": "user"}] * 9]}),
        ("/tokenize", {"messages": [{"role": "user"}] * 9}),
        ("/v2/embed", {"inputs": [{"content": [{"type": "image"}]}] * 9}),
        ("/embed", {"inputs": [[]] * 9}),
        ("/score", {"text_1": [[]] * 9, "text_2": "w1"}),
        ("/rerank", {"query": "w1", "documents": [{"content": []}] * 9}),
    ],
)
def test_too_many_are_refused_before_any_is_looked_at(make_site, path, body):
    """Millions of empty lists fit into a body: parsing each before counting them took half a minute."""
    answer = make_site("chatty", max_texts=8).post(path, body)
    if body.get("input") == [["w1"]] * 9:
        assert answer.status_code == 400  # no shape that there is
    else:
        assert answer.status_code == 413, answer.text
        assert "--max-texts" in answer.json()["error"]["message"]
