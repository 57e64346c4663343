"""Other people's clients over loopback, against uvicorn and the real engine; vectors are those of the Python API."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
import uvicorn
from fake_engine import BUILDERS, build_settings

from poolgraph.runtime.llm import LLM
from poolgraph.runtime.model_arguments import ModelArguments
from poolgraph.serving.app import build_app
from poolgraph.serving.observer import NullObserver
from poolgraph.serving.registry import open_registry

cohere = pytest.importorskip("cohere")
huggingface_hub = pytest.importorskip("huggingface_hub")
openai = pytest.importorskip("openai")
langchain_openai = pytest.importorskip("langchain_openai")

TEXTS = ["w1 w2 w3", "w5", "w6 w7 w8 w9 w10", "Hello, my name is"]
KINDS = ("plain", "reranker")


@dataclass(frozen=True)
class Server:
    """A server on loopback, and the same models in Python."""

    url: str
    embedder: LLM
    reranker: LLM

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.stack([output.outputs.data for output in self.embedder.embed(texts, use_tqdm=False)])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    paths = {kind: BUILDERS[kind](folder / kind) for kind in KINDS}
    settings = build_settings()
    observer = NullObserver()
    registry = open_registry([ModelArguments(model=path) for path in paths.values()], settings.engine, observer)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = build_app(registry, settings, observer)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", ws="none", log_level="error")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        port = listener.getsockname()[1]
        yield Server(
            url=f"http://127.0.0.1:{port}",
            embedder=LLM(str(paths["plain"])),
            reranker=LLM(str(paths["reranker"])),
        )
        running.should_exit = True
        thread.join(10)
    asyncio.run(registry.close(1.0))


def test_openai(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        # Without a format the client asks for base64.
        answer = client.embeddings.create(input=TEXTS, model="plain")
        got = np.array([item.embedding for item in answer.data], dtype=np.float32)
        assert got.tobytes() == server.embed(TEXTS).tobytes()
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
        floats = client.embeddings.create(input=TEXTS, model="plain", encoding_format="float")
        assert np.array([item.embedding for item in floats.data], dtype=np.float32).tobytes() == got.tobytes()
        listed = list(client.models.list())
        assert [model.id for model in listed] == ["plain", "reranker"]
        assert client.models.retrieve("reranker") == listed[1]


def test_errors_reach_the_openai_client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="The model `gpt` does not exist"):
            client.embeddings.create(input="w1", model="gpt")
        with pytest.raises(openai.NotFoundError, match="The model `org/gpt` does not exist"):
            client.models.retrieve("org/gpt")
        with pytest.raises(openai.BadRequestError, match="maximum context length is 40 tokens"):
            client.embeddings.create(input="w1 " * 60, model="plain")


def test_cohere(server):
    with httpx.Client() as connections:
        client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=connections)
        kinds = ["float", "ubinary"]
        answer = client.embed(texts=TEXTS, model="plain", input_type="search_document", embedding_types=kinds)
        ranked = client.rerank(model="reranker", query="w1 w2", documents=TEXTS[:3], top_n=2)
    expected = server.embed(TEXTS)
    assert np.array(answer.embeddings.float_, dtype=np.float32).tobytes() == expected.tobytes()
    assert answer.embeddings.ubinary == np.packbits(expected >= 0, axis=-1).tolist()
    assert answer.meta.billed_units.input_tokens > 0
    scores = [output.outputs.score for output in server.reranker.score("w1 w2", TEXTS[:3], use_tqdm=False)]
    best = sorted(range(3), key=lambda index: -scores[index])[:2]
    assert [(row.index, row.relevance_score) for row in ranked.results] == [(index, scores[index]) for index in best]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own code
def test_cohere_of_old(server):
    texts = [f"w{number % 60}" for number in range(100)]  # the client sends 96 a request
    with httpx.Client() as connections:
        client = cohere.Client(api_key="x", base_url=server.url, httpx_client=connections)
        floats = client.embed(texts=texts, model="plain", input_type="search_document")
        by_type = client.embed(texts=texts, model="plain", input_type="search_query", embedding_types=["float"])
    expected = server.embed(texts)
    assert (floats.response_type, by_type.response_type) == ("embeddings_floats", "embeddings_by_type")
    assert np.array(floats.embeddings, dtype=np.float32).tobytes() == expected.tobytes()
    assert np.array(by_type.embeddings.float_, dtype=np.float32).tobytes() == expected.tobytes()
    assert floats.texts == by_type.texts == texts
    assert floats.meta.api_version.version == "1"
    assert floats.meta.billed_units.input_tokens == 300


def test_hugging_face(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = huggingface_hub.InferenceClient(server.url, token="none")
    got = client.feature_extraction(TEXTS, normalize=True, truncate=True)
    assert got.astype(np.float32).tobytes() == server.embed(TEXTS).tobytes()


def test_langchain(server):
    with httpx.Client() as connections:
        embeddings = langchain_openai.OpenAIEmbeddings(
            model="plain",
            base_url=f"{server.url}/v1",
            api_key="none",
            check_embedding_ctx_length=False,
            http_client=connections,
        )
        documents = embeddings.embed_documents(TEXTS)
        query = embeddings.embed_query(TEXTS[1])
    expected = server.embed(TEXTS)
    assert np.array(documents, dtype=np.float32).tobytes() == expected.tobytes()
    assert np.array(query, dtype=np.float32).tobytes() == expected[1].tobytes()


def test_no_answer_names_a_folder(server):
    with httpx.Client(base_url=server.url) as client:
        answers = [client.get(path) for path in ("/v1/models", "/info", "/ready", "/openapi.json")]
        answers += [
            client.post("/v1/embeddings", json={"input": "w1", "model": "plain", "dimensions": 99}),
            client.post("/v1/embeddings", json={"input": "w1 " * 60, "model": "plain"}),
            client.post("/pooling", json={"input": "w1", "model": "plain", "task": "classify"}),
            client.post("/classify", json={"input": "w1", "model": "plain"}),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 400, 400, 400, 501]
    for answer in answers:
        assert "served0" not in answer.text


def test_many_clients_at_once_each_get_their_own(server):
    texts = [f"w{number % 60} w{number * 7 % 60}" for number in range(64)]
    expected = server.embed(texts)
    got: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.url) as client:
            body = {"input": texts[number], "model": "plain"}
            got[number] = np.array(client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"], np.float32)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[number].tobytes() == expected[number].tobytes() for number in range(64))


def test_a_client_that_is_killed_leaves_no_work(server):
    """The connection ends while its texts wait; the server answers the next one as if nothing had been."""
    body = b'{"input": ["w1 w2 w3"], "model": "plain"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    for cut in (len(body), 10):
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(head % len(body) + body[:cut])
    assert httpx.get(f"{server.url}/health").status_code == 200
