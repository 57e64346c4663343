"""A model without a graph: each text's vector is made from its hash, so it is the same in every batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
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
        "onnx/weights_fp32.data": FileRecord(size=90_000_000, sha256="22" * 32),
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

    def check_embed_options(self, *, prompt_name: str | None, prompt: str | None, dimensions: int | None) -> None:
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


def make_vector(text: str) -> NDArray[np.float32]:
    """Return the vector of a text, (EMBEDDING_SIZE,), with values of many magnitudes."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    random = np.random.default_rng(seed)
    return (random.standard_normal(EMBEDDING_SIZE) * 10.0 ** random.integers(-30, 5, EMBEDDING_SIZE)).astype(np.float32)
