"""Late-interaction artifacts against sentence-transformers' MultiVectorEncoder: vectors, scores, bits."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_graphs import FLOAT32
from parity_table import largest_difference, record
from tiny_colbert import (
    build_lfm2,
    build_modern_backbone,
    load_oracle,
    mixed_texts,
    save_native,
    save_pylate,
    save_stanford,
)
from transformers import BertModel

from poolgraph import PoolingModel, export_model

PYLATE = {
    "model_type": "ColBERT",
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 16,
    "document_length": 40,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(string.punctuation),
}

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "stanford": lambda folder: save_stanford(folder, {"query_maxlen": 16, "doc_maxlen": 40}),
    "stanford, attending": lambda folder: save_stanford(
        folder, {"query_maxlen": 16, "doc_maxlen": 40, "attend_to_mask_tokens": True, "mask_punctuation": False}
    ),
    "pylate": lambda folder: save_pylate(folder, PYLATE),
    "pylate, local attention": lambda folder: save_pylate(folder, PYLATE, build=partial(build_modern_backbone, 28)),
    "pylate, convolutions": lambda folder: save_pylate(folder, PYLATE, build=build_lfm2),
    "native": lambda folder: save_native(
        folder,
        prompts={"query": "query: ", "document": "document: "},
        similarity="meanmaxsim",
        normalize=False,
        mask={"skiplist_words": [".", "the"], "skiplist_tasks": ["query", "document"]},
        query_expansion={"strategy": "min", "length": 10},
        query_length=30,
    ),
}

ORACLE = "sentence-transformers MultiVectorEncoder"


@dataclass(frozen=True)
class Case:
    """An artifact and the model that it must answer like."""

    name: str
    artifact: Path
    oracle: Any


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("colbert")
    checkpoint = CHECKPOINTS[request.param](folder / "checkpoint")
    export_model(checkpoint, folder / "artifact")
    return Case(request.param, folder / "artifact", load_oracle(checkpoint))


def embed(model: PoolingModel, side: str, texts: list[str]) -> list[np.ndarray]:
    method = {"query": model.embed_queries, "document": model.embed_documents}[side]
    return method(texts, truncate=True)


def assert_same_vectors(expected: np.ndarray, found: np.ndarray) -> None:
    assert found.shape == expected.shape
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert ((expected * found).sum(1) / norms).min() >= 0.99999
    assert np.abs(expected - found).max() <= 1e-4


@pytest.mark.parametrize("variant", FLOAT32)
@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.filterwarnings("ignore:.* texts were longer than .* and were cut:UserWarning")
def test_vectors_are_those_of_multi_vector_encoder(case: Case, side: str, variant: str) -> None:
    texts = mixed_texts()
    encode = {"query": case.oracle.encode_query, "document": case.oracle.encode_document}[side]
    expected = encode(texts, convert_to_numpy=True, batch_size=8)
    with PoolingModel.load(case.artifact, variant=variant) as model:
        answers = embed(model, side, texts)
    for want, found in zip(expected, answers, strict=True):
        assert_same_vectors(want, found)
    record(f"{side} vectors", f"{case.name}, {variant}", ORACLE, largest_difference(expected, answers))


@pytest.mark.filterwarnings("ignore:.* texts were longer than .* and were cut:UserWarning")
def test_scores_are_those_of_multi_vector_encoder(case: Case) -> None:
    texts = mixed_texts()
    queries, documents = texts[:15], texts[15:]
    expected = case.oracle.similarity(case.oracle.encode_query(queries), case.oracle.encode_document(documents)).numpy()
    with PoolingModel.load(case.artifact) as model:
        found = model.similarity(embed(model, "query", queries), embed(model, "document", documents))
        assert np.abs(expected - found).max() <= 1e-4
        pairs = model.score(queries[0], documents, truncate=True)
        assert np.abs(expected[0] - pairs).max() <= 1e-4
    record("score", f"{case.name}, MaxSim", ORACLE, largest_difference([expected, expected[0]], [found, pairs]))


@pytest.mark.filterwarnings("ignore:.* texts were longer than .* and were cut:UserWarning")
def test_a_text_has_the_same_bits_alone_and_in_any_batch(case: Case) -> None:
    texts = mixed_texts(seed=3)
    order = np.random.default_rng(0).permutation(len(texts))
    with PoolingModel.load(case.artifact) as model:
        for side in ("query", "document"):
            together = embed(model, side, texts)
            shuffled = embed(model, side, [texts[index] for index in order])
            for place, index in enumerate(order):
                assert shuffled[place].tobytes() == together[index].tobytes()
            for text, rows in zip(texts[:12], together, strict=False):
                assert embed(model, side, [text])[0].tobytes() == rows.tobytes()


def test_plain_vectors_are_the_projected_rows(tmp_path: Path) -> None:
    """VLLM's answer: every token, no marker, no expansion, no skip list."""
    import torch

    checkpoint = save_stanford(tmp_path / "checkpoint", {"query_maxlen": 16, "doc_maxlen": 40})
    export_model(checkpoint, tmp_path / "artifact")
    dense = next(module for module in load_oracle(checkpoint) if type(module).__name__ == "Dense")
    backbone = BertModel.from_pretrained(checkpoint).eval()
    texts = mixed_texts(12, longest=30)
    with PoolingModel.load(tmp_path / "artifact") as model, torch.inference_mode():
        plain = model.embed_queries(texts, plain=True), model.embed_documents(texts, plain=True)
        for text, query, document in zip(texts, *plain, strict=True):
            ids = torch.from_numpy(model.tokenizer.encode([text])[0].input_ids)[None]
            rows = dense.linear(backbone(input_ids=ids).last_hidden_state[0])
            assert_same_vectors(torch.nn.functional.normalize(rows, dim=-1).numpy(), query)
            assert query.tobytes() == document.tobytes()
