"""all-MiniLM-L6-v2, the real checkpoint, against sentence-transformers over every length up to the limit."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from parity_table import largest_difference, record
from sentence_transformers import SentenceTransformer
from tiny_models import save_checkpoint

from poolgraph import PoolingModel
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.runtime.tokenizer import EncodedText

LIMIT = 256


@pytest.fixture(scope="module")
def texts(minilm_artifact: Path) -> list[str]:
    """At least 300 texts, one or more of every token count from 2 to the limit."""
    source = random.Random(7)
    words = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
    with PoolingModel.load(minilm_artifact) as model:
        candidates = ["", *(" ".join(source.choices(words, k=source.randint(1, 150))) for _ in range(700))]
        exact = [" ".join(["word"] * count) for count in range(LIMIT - 1)]
        counts = model.count_tokens(candidates)
        kept = [text for text, count in zip(candidates, counts, strict=True) if count <= LIMIT][:150] + exact
        assert set(model.count_tokens(kept)) == set(range(2, LIMIT + 1))
    assert len(kept) >= 300
    return kept


def test_vectors_equal_sentence_transformers(minilm_artifact: Path, minilm_checkpoint: Path, texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = SentenceTransformer(str(minilm_checkpoint), device="cpu").encode(texts)
    with PoolingModel.load(minilm_artifact) as model:
        found = model.embed(texts)
    assert (expected * found).sum(1).min() >= 0.99999
    assert np.abs(expected - found).max() <= 1e-4 * np.abs(expected).max()
    record("embed", "all-MiniLM-L6-v2", "sentence-transformers", largest_difference([expected], [found]))


def test_bits_do_not_depend_on_the_batch(minilm_artifact: Path, texts: list[str]) -> None:
    many = texts[::2]
    order = np.random.default_rng(3).permutation(len(many))
    with PoolingModel.load(minilm_artifact) as model:
        together = model.embed([many[index] for index in order])[np.argsort(order)]
        alone = np.concatenate([model.embed(text) for text in many[::2]])
    assert np.array_equal(together[::2], alone)


@pytest.mark.parametrize("name", ["BertModel", "MPNetModel"])
def test_single_tokens_have_the_same_bits_in_a_batch(name: str, tmp_path: Path) -> None:
    """A text of one token alone is a matrix product of one row, which kernels like to treat apart."""
    from poolgraph import export_model

    export_model(save_checkpoint(tmp_path / "checkpoint", name), tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        texts: list[EncodedText] = [model.tokenizer.encode_ids([token]) for token in range(5, 40)]
        together = model.run_sequence(texts)
        alone = np.concatenate([model.run_sequence([text]) for text in texts])
    assert np.array_equal(together, alone)
