"""``/v1/embeddings``: every field, every form, against the vectors of the Python API."""

from __future__ import annotations

import base64
import json
import sys
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from fake_engine import SIZE

from poolgraph.config import LateChunkingParams, PoolingParams
from poolgraph.runtime.llm import LLM

TEXTS = ["w1 w2 w3", "w5", "w6 w7 w8 w9 w10"]
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def llm(find_model):
    return LLM(str(find_model("embedder").runner.model.path))


def embed(llm, texts, **params):
    outputs = llm.embed(texts, pooling_params=PoolingParams(**params), use_tqdm=False)
    return [output.outputs.data for output in outputs]


def read_base64(item, dtype=np.float32):
    return np.frombuffer(base64.b64decode(item["embedding"]), dtype=dtype)


def test_openais_answer(make_site, llm):
    answer = make_site().post("/v1/embeddings", {"input": TEXTS, "model": "embedder"})
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "list"
    assert body["model"] == "embedder"
    assert body["id"].startswith("embd-")
    assert isinstance(body["created"], int)
    assert [(item["index"], item["object"]) for item in body["data"]] == [(i, "embedding") for i in range(3)]
    assert body["usage"] == {
        "prompt_tokens": 15,
        "total_tokens": 15,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    for item, expected in zip(body["data"], embed(llm, TEXTS), strict=True):
        assert np.array_equal(np.array(item["embedding"], dtype=np.float32), expected)


def test_base64_has_the_bits_of_the_python_api(make_site, llm):
    body = make_site().post("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"}).json()
    for item, expected in zip(body["data"], embed(llm, TEXTS), strict=True):
        assert read_base64(item).tobytes() == expected.tobytes()


def test_ids_texts_and_both(make_site, llm):
    site = make_site()
    ids = llm.get_tokenizer().encode(["w1 w2"])[0].input_ids.tolist()
    whole = embed(llm, ["w1 w2"])[0]
    for given in (ids, [ids], "w1 w2", ["w1 w2"]):
        (item,) = site.post("/v1/embeddings", {"input": given, "encoding_format": "base64"}).json()["data"]
        assert read_base64(item).tobytes() == whole.tobytes()
    mixed = site.post("/v1/embeddings", {"input": ["w5", ids], "encoding_format": "base64"}).json()["data"]
    assert read_base64(mixed[1]).tobytes() == whole.tobytes()
    assert read_base64(mixed[0]).tobytes() == embed(llm, ["w5"])[0].tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("endianness", ["native", "big", "little"])
@pytest.mark.parametrize("form", ["base64", "bytes", "bytes_only"])
def test_types_and_byte_orders(make_site, llm, dtype, endianness, form):
    request = {"input": TEXTS, "encoding_format": form, "embed_dtype": dtype, "endianness": endianness}
    answer = make_site().post("/v1/embeddings", request)
    expected = np.stack(embed(llm, TEXTS)).astype(TYPES[dtype])
    if endianness not in ("native", sys.byteorder):
        expected = expected.byteswap()
    if form == "base64":
        got = b"".join(base64.b64decode(item["embedding"]) for item in answer.json()["data"])
    else:
        got = answer.content
        assert answer.headers["content-type"] == "application/octet-stream"
        assert ("metadata" in answer.headers) == (form == "bytes")
    assert got == expected.tobytes()


def test_bytes_are_described_in_the_header(make_site):
    answer = make_site().post("/v1/embeddings", {"input": TEXTS[:2], "encoding_format": "bytes", "request_id": "é"})
    metadata = json.loads(answer.headers["metadata"])
    assert metadata["id"] == "embd-é"
    assert metadata["model"] == "embedder"
    row = {"embed_dtype": "float32", "endianness": "native", "shape": [SIZE]}
    assert metadata["data"] == [
        {"index": 0, "start": 0, "end": SIZE * 4} | row,
        {"index": 1, "start": SIZE * 4, "end": SIZE * 8} | row,
    ]
    assert metadata["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
@pytest.mark.parametrize("form", ["bytes", "bytes_only"])
def test_bytes_tell_the_tokens_used_and_dropped_in_headers(make_site, path, form):
    request = {"input": ["w1 w2 w3 w4", "w1"], "truncate_prompt_tokens": 4, "encoding_format": form}
    answer = make_site().post(path, request)
    assert (answer.headers["x-tokens-used"], answer.headers["x-tokens-dropped"]) == (str(4 + 3), "2")


def test_dimensions_and_activation(make_site, llm):
    site = make_site()
    (item,) = site.post("/v1/embeddings", {"input": "w1", "dimensions": 5}).json()["data"]
    assert item["embedding"] == pytest.approx(embed(llm, ["w1"], dimensions=5)[0].tolist(), abs=1e-7)
    (item,) = site.post("/v1/embeddings", {"input": "w1", "use_activation": False}).json()["data"]
    expected = embed(llm, ["w1"], use_activation=False)[0]
    assert np.linalg.norm(expected) != pytest.approx(1)
    assert np.array_equal(np.array(item["embedding"], dtype=np.float32), expected)


def test_what_truncation_dropped_is_told(make_site):
    site = make_site()
    long = " ".join(["w1"] * 50)
    for side, keep, used in (("right", -1, 40), ("left", 6, 6), (None, 5, 5)):
        request = {"input": [long, "w1"], "truncate_prompt_tokens": keep, "truncation_side": side}
        cut, whole = site.post("/v1/embeddings", request).json()["data"]
        assert (cut["truncated"], cut["tokens_used"], cut["tokens_dropped"]) == (True, used, 52 - used)
        assert (whole["truncated"], whole["tokens_used"], whole["tokens_dropped"]) == (False, 3, 0)


def test_special_tokens_may_be_left_out(make_site):
    body = make_site().post("/v1/embeddings", {"input": "w1 w2", "add_special_tokens": False}).json()
    assert body["usage"]["prompt_tokens"] == 2


def test_ids_of_requests(make_site):
    site = make_site()
    assert site.post("/v1/embeddings", {"input": "w1", "request_id": "mine"}).json()["id"] == "embd-mine"
    first, second = (site.post("/v1/embeddings", {"input": "w1"}).json()["id"] for _ in range(2))
    assert first != second


def test_the_headers_id_comes_first(make_site):
    site = make_site()

    async def named(scope, receive, send):
        # As the middleware that names requests does.
        await site.app(scope | {"state": {"request_id": "theirs"}}, receive, send)

    outer = replace(site, app=named)
    request = {"input": "w1", "request_id": "mine"}
    assert outer.post("/v1/embeddings", request, headers={"x-request-id": "theirs"}).json()["id"] == "embd-theirs"
    assert outer.post("/v1/embeddings", request).json()["id"] == "embd-mine"
    assert outer.post("/v1/embeddings", {"input": "w1"}).json()["id"] == "embd-theirs"


def test_priority_and_deadline_reach_the_engine(make_site):
    site = make_site(request_timeout=9.0)
    site.post("/v1/embeddings", {"input": "w1", "priority": -3, "timeout": 2.5})
    site.post("/v1/embeddings", {"input": "w1", "timeout": 25})
    first, second = site.model.urgencies
    assert (first.priority, first.timeout) == (-3, 2.5)
    assert (second.priority, second.timeout) == (0, 9.0)


def test_a_batch_of_any_size_is_one_piece_of_work(make_site):
    site = make_site()
    texts = [f"w{number % 60}" for number in range(300)]
    body = site.post("/v1/embeddings", {"input": texts, "encoding_format": "base64"}).json()
    assert [item["index"] for item in body["data"]] == list(range(300))
    assert site.model.num_calls == 1
    assert body["data"][3]["embedding"] == body["data"][63]["embedding"]
    assert body["data"][3]["embedding"] != body["data"][4]["embedding"]


def test_unknown_fields_are_accepted(make_site):
    assert make_site().post("/v1/embeddings", {"input": "w1", "user": "ann", "nonsense": [1]}).status_code == 200


def test_conversations(make_site):
    site = make_site("chatty")
    talk = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": [{"type": "text", "text": "w3"}]}]
    written = "u w1 w2 . a w3 . "
    request = {"encoding_format": "base64", "add_special_tokens": False}
    (expected,) = site.post("/v1/embeddings", {"input": written, **request}).json()["data"]
    for given in ({"messages": talk}, {"messages": [talk]}, {"input": talk}, {"input": [talk]}):
        (item,) = site.post("/v1/embeddings", {**given, "encoding_format": "base64"}).json()["data"]
        assert item == expected
    opened = site.post("/v1/embeddings", {"messages": talk, "add_generation_prompt": True}).json()
    assert opened["usage"]["prompt_tokens"] == expected["tokens_used"] + 1
    both = {"messages": talk, "add_generation_prompt": True, "continue_final_message": True}
    answer = site.post("/v1/embeddings", both)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
    )
    closed = site.post("/v1/embeddings", {"messages": talk, "continue_final_message": True}).json()
    assert closed["usage"]["prompt_tokens"] == expected["tokens_used"] - 1


def test_a_template_of_the_request_is_refused_unless_trusted(make_site):
    talk = {"messages": [{"role": "user", "content": "w1"}], "chat_template": "{{ messages[0]['content'] }} w9"}
    answer = make_site("chatty").post("/v1/embeddings", talk)
    assert answer.status_code == 400
    assert "--trust-request-chat-template is not set" in answer.json()["error"]["message"]
    trusted = make_site("chatty", trust_request_chat_template=True).post("/v1/embeddings", talk)
    assert trusted.json()["usage"]["prompt_tokens"] == 2


def test_a_model_without_template_takes_no_messages(make_site):
    answer = make_site().post("/v1/embeddings", {"messages": [{"role": "user", "content": "w1"}]})
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


def test_token_embeddings_are_matrices(make_site, find_model):
    site = make_site("tokens")
    llm = LLM(str(find_model("tokens").runner.model.path))
    (expected,) = llm.encode(["w1 w2"], pooling_task="token_embed", use_tqdm=False)
    (item,) = site.post("/v1/embeddings", {"input": "w1 w2"}).json()["data"]
    assert np.array_equal(np.array(item["embedding"], dtype=np.float32), expected.outputs.data)
    assert item["late_chunking"] is None
    for wrong in ({"encoding_format": "base64"}, {"dimensions": 4}):
        answer = site.post("/v1/embeddings", {"input": "w1", **wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(wrong))


def test_late_chunking(make_site, find_model):
    site = make_site("tokens")
    llm = LLM(str(find_model("tokens").runner.model.path))
    params = PoolingParams(late_chunking_params=LateChunkingParams(3))
    (expected,) = llm.encode(["w1 w2 w3"], pooling_task="token_embed", pooling_params=params, use_tqdm=False)
    request = {"input": "w1 w2 w3", "late_chunking_params": {"chunk_size": 3}}
    (item,) = site.post("/v1/embeddings", request).json()["data"]
    assert np.array_equal(np.array(item["embedding"], dtype=np.float32), expected.outputs.data)
    assert item["late_chunking"]["strategy"] == "fixed_tokens"
    assert [chunk["token_range"] for chunk in item["late_chunking"]["chunks"]] == [[0, 3], [3, 5]]
    assert site.post("/v1/embeddings", {"input": "w1", "late_chunking_params": {"size": 3}}).status_code == 400


def test_large_answers_are_encoded_off_the_event_loop(make_site, monkeypatch):
    threads = []

    class Watching:
        def encoded(self, model, seconds):
            threads.append(threading.current_thread() is threading.main_thread())

    site = make_site(observer=Watching())
    site.post("/v1/embeddings", {"input": ["w1"] * 10})
    site.post("/v1/embeddings", {"input": ["w1"] * 4000})
    assert threads == [True, False]
