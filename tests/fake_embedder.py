"""Models without a graph: each answer is made from its text's hash, so it is the same in every batch."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import (
    CheckRow,
    FileRecord,
    Graph,
    Limits,
    Manifest,
    Pooler,
    Report,
    Source,
    Tensor,
    Tokenization,
    Variant,
)
from poolgraph.runtime.entities import Entity
from poolgraph.runtime.task_score import RankedDocument

EMBEDDING_SIZE = 8

INPUT_IDS = Tensor(name="input_ids", dtype="int64", shape=("batch_size", "sequence_length"))
POOLED = Tensor(name="pooled", dtype="float32", shape=("batch_size", EMBEDDING_SIZE))

CHECK = CheckRow(
    variant="cpu_fp32",
    family="sequence",
    check="alone",
    num_texts=40,
    min_cosine=0.9999998,
    max_difference=1.2e-7,
    required_cosine=0.99999,
    allowed_difference=1e-4,
    passed=True,
)

VARIANT = Variant(
    name="cpu_fp32",
    target="cpu",
    precision="fp32",
    layout="uniform",
    providers=("CPUExecutionProvider",),
    graphs={
        "sequence": Graph(file="onnx/model_cpu_fp32.onnx", inputs=(INPUT_IDS,), outputs=(POOLED,), raw_output="pooled")
    },
    verified=True,
)

MANIFEST = Manifest(
    poolgraph_version="0.1.0",
    created="2026-11-22T04:00:00Z",
    source=Source(model="acme/tiny", revision="main", content_hash="c0ffee"),
    architecture="BertModel",
    tasks=("embed", "token_embed"),
    default_task="embed",
    pooler=Pooler(
        pooling=("mean",), normalize=True, embedding_size=EMBEDDING_SIZE, token_embedding_size=EMBEDDING_SIZE
    ),
    limits=Limits(max_model_len=256, vocab_size=1000),
    tokenization=Tokenization(pad_token_id=0),
    prompts={"query": "query: ", "document": ""},
    default_prompt_name="query",
    variants=(VARIANT,),
    report=Report(reference="sentence-transformers 6.2.0 on torch", rows=(CHECK,)),
    files={
        "onnx/model_cpu_fp32.onnx": FileRecord(size=1234, sha256="11" * 32),
        "tokenizer.json": FileRecord(size=700_000, sha256="44" * 32),
        "onnx/weights.data": FileRecord(size=90_000_000, sha256="22" * 32),
    },
)


class FakeEmbedder:
    """Embeds without a graph; fails at the chunk ``fail_at`` and takes ``seconds_per_chunk``."""

    def __init__(self, *, fail_at: int | None = None, seconds_per_chunk: float = 0.0, **changes: Any) -> None:
        self.manifest = msgspec.structs.replace(MANIFEST, **changes)
        self.variant = VARIANT
        self.calls: list[tuple[list[str], dict[str, object]]] = []
        self._fail_at = fail_at
        self._seconds_per_chunk = seconds_per_chunk

    def check_embed_options(
        self,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        side: str | None = None,
    ) -> None:
        if prompt_name is not None and prompt_name not in self.manifest.prompts:
            raise InputError(f"no prompt {prompt_name!r}")

    def embed_chunk(
        self, texts: Sequence[str], *, first_index: int, **options: object
    ) -> tuple[NDArray[np.float32], int]:
        if len(self.calls) == self._fail_at:
            raise RuntimeError("power cut")
        self.calls.append((list(texts), options))
        time.sleep(self._seconds_per_chunk)
        for index, text in enumerate(texts, first_index):
            if text == "too long":
                raise InputError(f"text {index} has 999 tokens; the limit is 256")
        return np.stack([make_vector(text) for text in texts]), sum(text.startswith("cut") for text in texts)

    def __enter__(self) -> FakeEmbedder:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


LABELS = ("bad", "fair", "good")


class FakeModel(FakeEmbedder):
    """Does every task; ``calls`` has what each method was given."""

    def __init__(self, **changes: Any) -> None:
        tasks = ("classify", "token_classify", "embed", "token_embed")
        super().__init__(**{"tasks": tasks, "default_task": "classify", "labels": LABELS} | changes)

    def check_task(self, task: str) -> None:
        if task not in self.manifest.tasks:
            raise TaskNotSupported(f"'tiny' cannot {task}")

    def check_scoring(self, *, template: str | None = None) -> None:
        if self.manifest.scoring is None:
            raise TaskNotSupported("This model does not support the Scoring API.")

    def check_classify_options(self, *, use_activation: bool | None = None) -> None:
        self.check_task("classify")

    def check_token_options(self, **options: object) -> None:
        self.check_task("token_classify")

    def check_reward_options(self, **options: object) -> None:
        if not {"classify", "token_classify"} & {*self.manifest.tasks}:
            raise TaskNotSupported("'tiny' gives no rewards")

    def classify_chunk(self, texts: Sequence[str], **options: object) -> tuple[NDArray[np.float32], int]:
        rows, num_cut = self.embed_chunk(texts, **options)
        return np.abs(rows[:, : len(LABELS)]), num_cut

    def token_embed(self, texts: Sequence[str], **options: object) -> list[NDArray[np.float32]]:
        _, num_cut = self.embed_chunk(texts, first_index=0, **options)
        if num_cut:
            message = f"{num_cut} of {len(texts)} texts were longer than 256 tokens and were cut"
            warnings.warn(TruncationWarning(message, num_cut), stacklevel=2)
        return [make_rows(text) for text in texts]

    def token_classify_chunk(self, texts: Sequence[str], **options: object) -> tuple[list[NDArray[np.float32]], int]:
        _, num_cut = self.embed_chunk(texts, **options)
        return [make_rows(text)[:, : len(LABELS)] for text in texts], num_cut

    def reward_chunk(self, texts: Sequence[str], **options: object) -> tuple[Any, int]:
        if "classify" in self.manifest.tasks:
            rows, num_cut = self.classify_chunk(texts, **options)
            return rows[:, 0], num_cut
        return self.token_classify_chunk(texts, **options)

    def entities_chunk(
        self, texts: Sequence[str], *, first_index: int, **options: object
    ) -> tuple[list[list[Entity]], int]:
        self.calls.append((list(texts), options))
        index = 3 if options.get("aggregation_strategy") == "none" else None
        word = Entity(label="PER", score=0.75, word="ann", start=0, end=3, index=index)
        return [[word] if text.startswith("Ann") else [] for text in texts], 0

    def score(self, queries: Sequence[str], documents: Sequence[str], **options: object) -> NDArray[np.float32]:
        self.calls.append((list(zip(queries, documents, strict=True)), options))
        for index, document in enumerate(documents):
            if document == "too long":
                raise InputError(f"pair {index} has 999 tokens", parameter="input_tokens", value=999)
        num_cut = sum(document.startswith("cut") for document in documents)
        if num_cut:
            message = f"{num_cut} of {len(documents)} pairs were longer than 256 tokens and were cut"
            warnings.warn(TruncationWarning(message, num_cut), stacklevel=2)
        return np.array([make_score(*pair) for pair in zip(queries, documents, strict=True)], dtype=np.float32)

    def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None = None, **options: object
    ) -> list[RankedDocument]:
        scores = self.score([query] * len(documents), documents, top_n=top_n, **options)
        order = np.argsort(-scores, kind="stable")[:top_n]
        return [RankedDocument(int(index), float(scores[index]), documents[index]) for index in order]


def make_rows(text: str) -> NDArray[np.float32]:
    """Return the vectors of the words of a text, (num_words, EMBEDDING_SIZE)."""
    return np.stack([make_vector(word) for word in text.split(" ")])


def make_score(query: str, document: str) -> float:
    """Return the score of a pair: how many of the query's words the document has."""
    return float(np.float32(sum(word in document.split() for word in query.split()) + len(document) / 1000))


def make_vector(text: str) -> NDArray[np.float32]:
    """Return the vector of a text, (EMBEDDING_SIZE,), with values of many magnitudes."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    random = np.random.default_rng(seed)
    return (random.standard_normal(EMBEDDING_SIZE) * 10.0 ** random.integers(-30, 5, EMBEDDING_SIZE)).astype(np.float32)
