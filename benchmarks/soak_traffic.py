"""The traffic of the serving soak: requests of every route, each with the check that its answer is its own."""

from __future__ import annotations

import json
import random
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from soak_models import Row, Table

JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Check = Callable[[Reply], str | None]
"""Returns what is wrong with an answer, None where nothing is."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request and the check of its answer."""

    kind: str
    path: str
    body: bytes | None = None
    headers: Sequence[tuple[str, str]] = JSON
    check: Check
    method: str = "POST"
    is_malformed: bool = field(default=False)


def _post(kind: str, path: str, body: Any, check: Callable[[Any, Reply], str | None]) -> Ask:
    """Return a request whose answer must be a 200; ``check`` is given its JSON."""

    def whole(reply: Reply) -> str | None:
        if reply.status != 200:
            return f"status {reply.status}: {reply.body[:200]!r}"
        is_json = reply.headers["content-type"].startswith("application/json")
        return check(reply.json() if is_json else None, reply)

    return Ask(kind=kind, path=path, body=json.dumps(body).encode(), check=whole)


def _same(expected: Row, found: Any) -> str | None:
    values = np.asarray(found, dtype=np.float32)
    return None if values.shape == expected.shape and values.tobytes() == expected.tobytes() else "other numbers"


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault), None)


def _choose(draw: random.Random, texts: Sequence[str], most: int = 24) -> list[str]:
    return draw.choices(texts, k=max(1, round(most * draw.random() ** 4)))


def embeddings(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, table.texts, 48)
    form = draw.choice(["float", "base64"])
    endianness = draw.choice(["native", "little", "big"])
    as_ids = draw.random() < 0.2
    given = [table.token_ids[text] for text in texts] if as_ids else texts
    body = {"model": "embedder", "input": given, "encoding_format": form, "endianness": endianness}

    def check(answer: Any, reply: Reply) -> str | None:
        data = answer["data"]
        if [item["index"] for item in data] != list(range(len(texts))):
            return "other indices"
        if answer["usage"]["prompt_tokens"] != sum(len(table.token_ids[text]) for text in texts):
            return "other usage"
        order = ">f4" if endianness == "big" and form == "base64" else "<f4"
        read = (lambda one: np.frombuffer(b64decode(one), order)) if form == "base64" else (lambda one: one)
        return _first(
            _same(table.embeddings[text], read(item["embedding"])) for text, item in zip(texts, data, strict=True)
        )

    return _post(f"embeddings {form}", "/v1/embeddings", body, check)


def embedding_bytes(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, table.texts, 12)
    form, kind = draw.choice(["bytes", "bytes_only"]), draw.choice(["float32", "float16"])
    body = {"model": "embedder", "input": texts, "encoding_format": form, "embed_dtype": kind}
    expected = b"".join(table.embeddings[text].astype(kind).tobytes() for text in texts)

    def check(_: Any, reply: Reply) -> str | None:
        if form == "bytes" and len(json.loads(reply.headers["metadata"])["data"]) != len(texts):
            return "other metadata"
        return None if reply.body == expected else "other bytes"

    return _post(form, "/v1/embeddings", body, check)


def cut_embeddings(draw: random.Random, table: Table) -> Ask:
    text = draw.choice(table.long_texts)
    body = {"model": "embedder", "input": text, "truncate_prompt_tokens": -1}

    def check(answer: Any, reply: Reply) -> str | None:
        (item,) = answer["data"]
        return "not told as cut" if not item["truncated"] else _same(table.cut_embeddings[text], item["embedding"])

    return _post("truncated", "/v1/embeddings", body, check)


def cohere(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, table.texts, 10)
    body = {"model": "embedder", "texts": texts, "embedding_types": ["float", "ubinary", "base64"]}

    def check(answer: Any, reply: Reply) -> str | None:
        found = answer["embeddings"]
        if answer["texts"] != texts:
            return "other texts"
        return _first(
            _same(table.embeddings[text], found["float"][index])
            or _same(table.embeddings[text], np.frombuffer(b64decode(found["base64"][index]), "<f4"))
            or (None if found["ubinary"][index] == np.packbits(table.embeddings[text] >= 0).tolist() else "other bits")
            for index, text in enumerate(texts)
        )

    return _post("cohere", "/v2/embed", body, check)


def tei(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, table.texts, 10)

    def check(answer: Any, reply: Reply) -> str | None:
        return _first(_same(table.embeddings[text], row) for text, row in zip(texts, answer, strict=True))

    return _post("embed", "/embed", {"model": "embedder", "inputs": texts}, check)


def all_tokens(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, list(table.token_embeddings), 4)
    path = draw.choice(["/embed_all", "/pooling"])
    body = {"/embed_all": {"inputs": texts}, "/pooling": {"input": texts, "task": "token_embed"}}[path]

    def check(answer: Any, reply: Reply) -> str | None:
        rows = answer if path == "/embed_all" else [item["data"] for item in answer["data"]]
        return _first(_same(table.token_embeddings[text], row) for text, row in zip(texts, rows, strict=True))

    return _post(f"tokens {path}", path, {"model": "embedder", **body}, check)


def similarity(draw: random.Random, table: Table) -> Ask:
    source, others = draw.choice(table.texts), _choose(draw, table.texts, 8)
    vectors = np.stack([table.embeddings[text] for text in others]).astype(np.float64)
    expected = vectors @ table.embeddings[source].astype(np.float64)
    body = {"model": "embedder", "inputs": {"source_sentence": source, "sentences": others}}

    def check(answer: Any, reply: Reply) -> str | None:
        return None if np.allclose(answer, expected, atol=1e-6) else "other cosines"

    return _post("similarity", "/similarity", body, check)


def score(draw: random.Random, table: Table) -> Ask:
    query, documents = draw.choice(table.queries), _choose(draw, table.documents, 20)
    expected = np.array([table.scores[query, document] for document in documents])
    body = {"model": "reranker", "text_1": query, "text_2": documents}

    def check(answer: Any, reply: Reply) -> str | None:
        found = [item["score"] for item in answer["data"]]
        return None if np.allclose(found, expected, rtol=1e-6, atol=1e-7) else "other scores"

    return _post("score", draw.choice(["/score", "/v1/score"]), body, check)


def rerank(draw: random.Random, table: Table) -> Ask:
    query, documents = draw.choice(table.queries), _choose(draw, table.documents, 20)
    top = draw.choice([0, 1, 3])
    expected = [table.scores[query, document] for document in documents]
    body = {"model": "reranker", "query": query, "documents": documents, "top_n": top}

    def check(answer: Any, reply: Reply) -> str | None:
        found = answer["results"]
        scores = [item["relevance_score"] for item in found]
        if len(found) != min(top or len(documents), len(documents)) or scores != sorted(scores, reverse=True):
            return "other length or order"
        wrong = [
            item
            for item in found
            if item["document"]["text"] != documents[item["index"]]
            or not np.isclose(item["relevance_score"], expected[item["index"]], rtol=1e-6, atol=1e-7)
        ]
        return "other documents or scores" if wrong else None

    return _post("rerank", draw.choice(["/rerank", "/v1/rerank", "/v2/rerank"]), body, check)


def classify(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, table.short_texts, 12)
    path = draw.choice(["/classify", "/predict"])
    body = {"model": "classifier", "input": texts} if path == "/classify" else {"model": "classifier"}
    body |= {} if path == "/classify" else {"inputs": [[text] for text in texts]}

    def check(answer: Any, reply: Reply) -> str | None:
        if path == "/classify":
            return _first(
                _same(table.classes[text], item["probs"]) for text, item in zip(texts, answer["data"], strict=True)
            )
        rows = [{one["label"]: one["score"] for one in row} for row in answer]
        return _first(
            _same(table.classes[text], [row[label] for label in table.labels])
            for text, row in zip(texts, rows, strict=True)
        )

    return _post(path[1:], path, body, check)


def entities(draw: random.Random, table: Table) -> Ask:
    texts = _choose(draw, table.short_texts, 8)

    def check(answer: Any, reply: Reply) -> str | None:
        return _first(
            _same(table.entities[text], item["data"]) for text, item in zip(texts, answer["data"], strict=True)
        )

    return _post("ner", "/pooling", {"model": "ner", "input": texts}, check)


def tokens(draw: random.Random, table: Table) -> Ask:
    text = draw.choice(table.texts)

    def check(answer: Any, reply: Reply) -> str | None:
        return None if answer["tokens"] == table.token_ids[text] else "other tokens"

    return _post("tokenize", "/tokenize", {"model": "embedder", "prompt": text}, check)


def detokenize(draw: random.Random, table: Table) -> Ask:
    ids = table.token_ids[draw.choice(table.texts)]

    def check(answer: Any, reply: Reply) -> str | None:
        return None if isinstance(answer["prompt"], str) and answer["prompt"] else "no text"

    return _post("detokenize", "/detokenize", {"model": "embedder", "tokens": ids}, check)


_PAGES = ("/v1/models", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs", "/info")


def page(draw: random.Random, table: Table) -> Ask:
    def check(reply: Reply) -> str | None:
        return None if reply.status == 200 else f"status {reply.status}: {reply.body[:200]!r}"

    return Ask(kind="pages", path=draw.choice(_PAGES), headers=(), check=check, method="GET")


KINDS: Sequence[tuple[float, Callable[[random.Random, Table], Ask]]] = (
    (30, embeddings),
    (6, embedding_bytes),
    (3, cut_embeddings),
    (6, cohere),
    (6, tei),
    (4, all_tokens),
    (3, similarity),
    (8, score),
    (8, rerank),
    (8, classify),
    (4, entities),
    (3, tokens),
    (3, detokenize),
    (8, page),
)
"""Shares of the good traffic, and what makes it."""


def make_good(draw: random.Random, table: Table) -> Ask:
    weights, makers = zip(*KINDS, strict=True)
    return draw.choices(makers, weights)[0](draw, table)


def make_malformed(draw: random.Random, table: Table) -> Ask:
    path, body, allowed, *headers = draw.choice(_make_faults(draw, table))
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def check(reply: Reply) -> str | None:
        if reply.status not in allowed:
            return f"status {reply.status} of {allowed}: {reply.body[:200]!r}"
        error = reply.json()
        told = error.get("error", {}).get("message") or error.get("detail")
        return None if told and "/work" not in told and "Traceback" not in told else f"told {told!r}"

    return Ask(
        kind="malformed", path=path, body=data, headers=headers[0] if headers else JSON, check=check, is_malformed=True
    )


def _make_faults(draw: random.Random, table: Table) -> list[tuple[Any, ...]]:
    """Return path, body, statuses and headers of requests that nobody can answer."""
    embed, good = "/v1/embeddings", {"model": "embedder", "input": draw.choice(table.texts)}
    text = json.dumps(good).encode()
    return [
        (embed, text[: draw.randrange(1, len(text))], (400,)),
        (embed, b"", (400,)),
        (embed, b"\xff\xfe" + text, (400,)),
        (embed, text.decode().encode("utf-16"), (400,)),
        (embed, b'{"model": "embedder", "input": "\\ud800"}', (400,)),
        (embed, b'{"model": "embedder", "input": NaN}', (400,)),
        (embed, b"[" * 100_000, (400,)),
        (embed, {**good, "input": 5}, (400,)),
        (embed, {**good, "input": []}, (400,)),
        (embed, {**good, "input": [[-1]]}, (400,)),
        (embed, {**good, "input": [[10**9]]}, (400,)),
        (embed, {**good, "input": ["a"] * 9000}, (413,)),
        (embed, {**good, "input": draw.choice(table.long_texts)}, (400,)),
        (embed, {**good, "dimensions": draw.choice([0, -1, 10**30, 4.5, "seven"])}, (400,)),
        (embed, {**good, "truncate_prompt_tokens": draw.choice([-2, 10**6, 0.5])}, (400,)),
        (embed, {**good, "priority": 2**40}, (400,)),
        (embed, {**good, "timeout": 0}, (400,)),
        (embed, {**good, "chat_template": "{{ 1 }}", "messages": [{"role": "u", "content": "x"}]}, (400,)),
        (embed, {**good, "model": draw.choice(["nobody", "../embedder", "/etc/passwd", "embedder/"])}, (404,)),
        (embed, {**good, "model": "ner"}, (501,)),
        (embed, text, (415,), (("content-type", "text/plain"),)),
        ("/score", {"model": "reranker", "text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, (400,)),
        ("/rerank", {"model": "reranker", "query": "a", "documents": []}, (400,)),
        ("/classify", {"model": "reranker"}, (400,)),
        ("/pooling", {"model": "ner", "input": "a", "task": "embed"}, (400,)),
        ("/v1%2fembeddings%00", good, (404,)),
        ("/nowhere", good, (404,)),
        ("/health", good, (405,)),
    ]
