"""The models of the serving soak, and what each must answer: tables made by the Python API before the server starts."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poolgraph import PoolingModel

WORDS = re.findall(
    r"\w+",
    """one two three people time water house year before after great small river mountain because never always green
    bread letter answer question window machine country garden winter music paper number world""",
)
TESTS = Path(__file__).resolve().parent.parent / "tests"

Row = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Texts and what the models say of each, by the Python API.

    Attributes:
        texts: Texts of the embedder, of 1 token to its limit.
        long_texts: Texts above its limit.
        short_texts: Texts that fit the tiny models.
        queries: Of the reranker.
        documents: Of the reranker; it has a score for each query with each of them.
    """

    texts: Sequence[str]
    long_texts: Sequence[str]
    short_texts: Sequence[str]
    queries: Sequence[str]
    documents: Sequence[str]
    embeddings: Mapping[str, Row]
    cut_embeddings: Mapping[str, Row]
    token_embeddings: Mapping[str, Row]
    token_ids: Mapping[str, list[int]]
    classes: Mapping[str, Row]
    labels: Sequence[str]
    entities: Mapping[str, Row]
    scores: Mapping[tuple[str, str], float]
    limits: Mapping[str, int] = field(default_factory=dict)


def make_models(folder: Path, embedder: Path | None, exported: Path | None = None) -> dict[str, Path]:
    """Export tiny checkpoints of the tests, and return the artifacts by the names that they are served under.

    Args:
        folder: Where they go.
        embedder: An artifact in the place of the tiny embedder.
        exported: A folder that has the tiny artifacts already, by these names.
    """
    names = ("reranker", "classifier", "ner") if embedder else ("embedder", "reranker", "classifier", "ner")
    if exported is None:
        sys.path.insert(0, str(TESTS))
        from task_artifacts import make_artifact

        made = {name: make_artifact(name, folder) for name in names}
    else:
        made = {name: exported / name for name in names}
    return {"embedder": embedder, **made} if embedder else made


def make_table(models: Mapping[str, Path], *, size: int = 240, seed: int = 0) -> Table:
    """Ask the Python API for everything that the traffic can ask the server for."""
    draw = random.Random(seed)
    with PoolingModel.load(models["embedder"]) as model:
        limit = model.manifest.limits.max_model_len
        texts = _make_texts(draw, size, limit - 2)
        # Words may be several tokens: what is too long is cut until it fits.
        texts = [_fit(model, text, limit) for text in texts]
        texts = list(dict.fromkeys([*texts, "a", "\x00", "é ß 漢字 \U0001f600", "{{ 7 * 7 }}", "../../etc/passwd"]))
        long_texts = [" ".join(draw.choices(WORDS, k=limit + 40)) for _ in range(6)]
        encoded = model.tokenizer.encode(texts)
        token_texts = [text for text, one in zip(texts, encoded, strict=True) if one.num_tokens <= 64]
        embedded = dict(zip(texts, model.embed(texts, prompt=""), strict=True))
        cut = dict(zip(long_texts, _embed_cut(model, long_texts), strict=True))
        rows = dict(zip(token_texts, model.token_embed(token_texts, prompt=""), strict=True))
        ids = {text: one.input_ids.tolist() for text, one in zip(texts, encoded, strict=True)}
    short = _make_texts(draw, 80, 12)
    queries, documents = _make_texts(draw, 12, 6), _make_texts(draw, 40, 10)
    with PoolingModel.load(models["classifier"]) as model:
        classes, labels = dict(zip(short, model.classify(short), strict=True)), model.labels
    with PoolingModel.load(models["ner"]) as model:
        entities = dict(zip(short, model.token_classify(short), strict=True))
    with PoolingModel.load(models["reranker"]) as model:
        scores = {
            (query, document): float(score)
            for query in queries
            for document, score in zip(documents, model.score(query, documents), strict=True)
        }
    return Table(
        texts=texts,
        long_texts=long_texts,
        short_texts=short,
        queries=queries,
        documents=documents,
        embeddings=embedded,
        cut_embeddings=cut,
        token_embeddings=rows,
        token_ids=ids,
        classes=classes,
        labels=labels,
        entities=entities,
        scores=scores,
        limits={"embedder": limit},
    )


def _make_texts(draw: random.Random, number: int, longest: int) -> list[str]:
    """Return distinct texts of 1 to ``longest`` words, short ones more often, one of each end at least."""
    lengths = [1, longest, *(max(1, round(longest * draw.random() ** 5)) for _ in range(number - 2))]
    made = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
    return list(dict.fromkeys(made))


def _fit(model: PoolingModel, text: str, limit: int) -> str:
    words = text.split()
    while len(model.tokenizer.encode_batch([" ".join(words)], add_special_tokens=True, first_index=0)[0].ids) > limit:
        words.pop()
    return " ".join(words)


def _embed_cut(model: PoolingModel, texts: Sequence[str]) -> Row:
    vectors, num_cut = model.embed_chunk(texts, prompt="", truncate=True)
    assert num_cut == len(texts)
    return vectors
