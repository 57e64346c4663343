"""Artifacts against sentence-transformers: families, every pooling mode, heads, prompts and limits."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from native_graphs import FLOAT32
from sentence_transformers import SentenceTransformer
from tiny_models import HeadSpec, dense, save_checkpoint

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES

LAYER_NORM = (
    "LayerNorm",
    {"dimension": 32},
    {"norm.weight": torch.linspace(0.5, 1.5, 32), "norm.bias": torch.linspace(-0.2, 0.2, 32)},
)
NORMALIZE = ("Normalize", {}, {})
DROPOUT = ("Dropout", {"dropout": 0.5}, {})
GELU = "torch.nn.modules.activation.GELU"
POOLING_FLAGS = (
    "pooling_mode_cls_token",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
"""In the order in which sentence-transformers joins their vectors."""


def mixed_texts(num_texts: int, *, seed: int = 0, longest: int = 60) -> list[str]:
    """Texts of random words of PROBE_SENTENCES, from none to ``longest`` words."""
    source = random.Random(seed)
    words = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
    return [" ".join(source.choices(words, k=source.randint(0, longest))) for _ in range(num_texts)]


def oracle(checkpoint: Path, texts: list[str], **options: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SentenceTransformer(str(checkpoint), device="cpu").encode(texts, batch_size=1, **options)


def assert_same(expected: np.ndarray, found: np.ndarray) -> None:
    """DESIGN's fp32 threshold: cosine at least 0.99999, differences at most 1e-4 of the largest value."""
    assert found.shape == expected.shape
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert ((expected * found).sum(1) / norms).min() >= 0.99999
    assert np.abs(expected - found).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel", "MPNetModel"])
def test_a_family_equals_sentence_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", name)
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        candidates = [*mixed_texts(60, longest=40), *PROBE_SENTENCES, ""]
        texts = [text for text in candidates if model.count_tokens(text)[0] <= 128]
        assert len(texts) >= 40
        found = model.embed(texts)
        shuffled = list(reversed(range(len(texts))))
        assert np.array_equal(model.embed([texts[i] for i in shuffled])[np.argsort(shuffled)], found)
        assert np.array_equal(np.concatenate([model.embed(text) for text in texts]), found)
        rows = model.token_embed(texts[:5], normalize=False)
    assert_same(oracle(checkpoint, texts), found)
    for expected, tokens in zip(oracle(checkpoint, texts[:5], output_value="token_embeddings"), rows, strict=True):
        assert_same(expected.numpy(), tokens)


@pytest.mark.parametrize(
    ("flags", "include_prompt"),
    [
        *(((f"pooling_mode_{name}",), False) for name in ("cls_token", "lasttoken")),
        (POOLING_FLAGS, True),
        (POOLING_FLAGS, False),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and len(value) == 1 else None,
)
def test_every_pooling_mode_equals_sentence_transformers(
    flags: tuple[str, ...], include_prompt: bool, tmp_path: Path
) -> None:
    head = HeadSpec(
        pooling={**dict.fromkeys(flags, True), "include_prompt": include_prompt},
        modules=(),
        settings={"prompts": {"query": "where is the "}, "default_prompt_name": None},
    )
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "BertModel", head)
    export_model(checkpoint, tmp_path / "artifact")
    texts = mixed_texts(30, seed=1)
    for variant in FLOAT32:
        with PoolingModel.load(tmp_path / "artifact", variant=variant) as model:
            for prompt in ({}, {"prompt_name": "query"}):
                expected = np.split(oracle(checkpoint, texts, **prompt), len(flags), axis=1)
                found = np.split(model.embed(texts, **prompt), len(flags), axis=1)
                for own, of_oracle in zip(found, expected, strict=True):
                    assert_same(of_oracle, own)


@pytest.mark.parametrize(
    ("pooling", "modules"),
    [
        ({"pooling_mode": ["lasttoken", "mean"]}, (dense(64, 24), NORMALIZE)),
        (
            {"pooling_mode_mean_tokens": True},
            (dense(32, 48, GELU), dense(48, 16, "torch.nn.modules.linear.Identity", seed=2), NORMALIZE),
        ),
        ({"pooling_mode_mean_tokens": True}, (LAYER_NORM, DROPOUT, NORMALIZE, dense(32, 12))),
    ],
)
def test_heads_equal_sentence_transformers(pooling: dict, modules: tuple, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "BertModel", HeadSpec(pooling=pooling, modules=modules))
    export_model(checkpoint, tmp_path / "artifact")
    texts = mixed_texts(30, seed=2)
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = model.embed(texts)
        assert np.array_equal(np.concatenate([model.embed(text) for text in texts]), found)
    assert_same(oracle(checkpoint, texts), found)


def test_lower_casing_limit_and_default_prompt(tmp_path: Path) -> None:
    head = HeadSpec(
        max_seq_length=20,
        do_lower_case=True,
        settings={"prompts": {"passage": "Passage: "}, "default_prompt_name": "passage", "similarity_fn_name": "dot"},
    )
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "RobertaModel", head)
    export_model(checkpoint, tmp_path / "artifact")
    texts = ["UPPER Case And ÜMLAUTS", *mixed_texts(20, seed=3, longest=40)]
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert model.manifest.limits.max_model_len == 20
        assert model.manifest.similarity_fn_name == "dot"
        with pytest.warns(UserWarning, match="were cut"):
            found = model.embed(texts, truncate=True)
    assert_same(oracle(checkpoint, texts), found)


def test_what_sentence_transformers_saves_itself(tmp_path: Path) -> None:
    """Its current module names and keys, an option of the configuration, and embeddings cut to truncate_dim."""
    plain = save_checkpoint(tmp_path / "plain", "BertModel", HeadSpec(modules=(dense(32, 24), NORMALIZE)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SentenceTransformer(str(plain), device="cpu", truncate_dim=10).save(str(tmp_path / "saved"))
    settings = tmp_path / "saved" / "sentence_bert_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "config_kwargs": {"num_hidden_layers": 1}, "max_seq_length": 128}))
    export_model(tmp_path / "saved", tmp_path / "artifact")
    texts = mixed_texts(20, seed=4)
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = model.embed(texts)
    assert found.shape == (20, 10)
    assert_same(oracle(tmp_path / "saved", texts), found)
    assert np.abs(oracle(plain, texts)[:, :10] - found).max() > 0.01
