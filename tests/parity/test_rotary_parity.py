"""Rotary encoders in their published layouts and in transformers' own, against the class that they stand for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nomic_moe_oracle import moe_rows
from parity_table import TOLERANCE, WORDS, largest_difference, record
from portable_graphs import assert_same, run_portable
from tiny_colbert import load_oracle
from tiny_models import xlm_roberta_tokenizer
from tiny_nomic import publish_nomic, publish_nomic_moe
from tiny_rotary import (
    LORA_TASKS,
    MAX_LENGTH,
    Published,
    publish_gte,
    publish_jina,
)
from torch import nn
from transformers import PreTrainedTokenizerFast

from poolgraph import PoolingModel, export_model
from poolgraph.errors import InputError, UnsupportedArchitecture
from poolgraph.export.backbone import find_backbone

MARKERS = ("[QueryMarker]", "[DocumentMarker]")

LENGTHS = (3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 100, 129, 200, 257, 380, 513, 600, 640)
"""Lengths of the texts in tokens, at most; those beyond TRAINED_LENGTH are scaled where the base grows."""

Rows = Callable[[Published, list[int]], np.ndarray]


def transformers_rows(published: Published, ids: list[int]) -> np.ndarray:
    """A text's rows by transformers, (num_tokens, hidden_size), as if it were the first text that the model sees."""
    model: Any = published.model
    base = model.base_model
    base.rotary_emb = type(base.rotary_emb)(model.config)
    with torch.no_grad():
        rows: np.ndarray = base(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    return rows


def projected(published: Published, ids: list[int]) -> np.ndarray:
    """The rows after a ColBERT projection, each divided by its norm."""
    rows = torch.from_numpy(transformers_rows(published, ids)) @ published.tensors["linear.weight"].T
    return nn.functional.normalize(rows, dim=-1).numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A checkpoint and its oracle.

    Attributes:
        name: Of the row.
        publish: Makes the checkpoint.
        pool: Rows of a text to its vector.
        rows: The oracle.
        native: Whether it is saved in transformers' layout.
        options: Of the export.
    """

    name: str
    publish: Callable[[], Published]
    pool: Callable[[np.ndarray], np.ndarray] = lambda rows: rows[0]
    rows: Rows = transformers_rows
    native: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Published:
        """Write the checkpoint and return it."""
        published = self.publish()
        published.save_native(folder) if self.native else published.save(folder)
        return published


def mean(rows: np.ndarray) -> np.ndarray:
    """Average (num_tokens, hidden_size)."""
    return rows.mean(0)


LONGER = {"hf_overrides": {"n_positions": MAX_LENGTH}}

EMBED_ROWS = (
    Row(name="gte, fixed NTK", publish=publish_gte),
    Row(name="gte, no scaling, no token types", publish=lambda: publish_gte(factor=None, type_vocab_size=0)),
    Row(name="gte, native", publish=publish_gte, native=True),
    Row(name="nomic", publish=publish_nomic, pool=mean),
    Row(name="nomic, native", publish=publish_nomic, pool=mean, native=True),
    Row(name="nomic, dynamic NTK", publish=lambda: publish_nomic(factor=2.0), pool=mean),
    Row(
        name="nomic, dynamic NTK, native",
        publish=lambda: publish_nomic(factor=2.0),
        pool=mean,
        native=True,
        options=LONGER,
    ),
    Row(name="nomic, experts", publish=publish_nomic_moe, pool=mean, rows=moe_rows),
    Row(name="jina v3, default adapter", publish=lambda: publish_jina(task="text-matching"), pool=mean),
    Row(
        name="jina v3, retrieval.query",
        publish=lambda: publish_jina(task="retrieval.query"),
        pool=mean,
        options={"hf_overrides": {"lora_task": "retrieval.query"}},
    ),
    Row(name="jina v3, native", publish=publish_jina, pool=mean, native=True),
)

CLASSIFY_ROWS = (
    Row(name="gte reranker", publish=lambda: publish_gte(classifier=True)),
    Row(name="gte reranker, native", publish=lambda: publish_gte(classifier=True), native=True),
    Row(name="jina reranker", publish=lambda: publish_jina("XLMRobertaForSequenceClassification")),
    Row(name="jina reranker, native", publish=lambda: publish_jina("XLMRobertaForSequenceClassification"), native=True),
)


def make_texts(count: Callable[[list[str]], list[int]]) -> list[str]:
    """Texts of random words, the empty one first, as long as LENGTHS allow."""
    source = random.Random(3)
    texts = ["", "a"]
    for limit in LENGTHS:
        words = source.choices(WORDS, k=limit)
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count([" ".join(words[:middle])])[0] <= limit else (low, middle - 1)
        texts.append(" ".join(words[:low]))
    return texts


def tokens_of(artifact: Path, texts: list[str]) -> list[list[int]]:
    """Token ids as the checkpoint's own tokenizer gives them."""
    ids: list[list[int]] = load_tokenizer(artifact)(texts)["input_ids"]
    assert min(map(len, ids)) <= 2
    assert 600 <= max(map(len, ids)) <= MAX_LENGTH
    return ids


def load_tokenizer(artifact: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer beside an artifact; one that is trained again differs."""
    return PreTrainedTokenizerFast.from_pretrained(artifact.with_name("checkpoint"))


def export(row: Row, folder: Path) -> tuple[Published, Path]:
    """Save and export a row."""
    published = row.save(folder / "checkpoint")
    export_model(folder / "checkpoint", folder / "artifact", **row.options)
    return published, folder / "artifact"


@pytest.mark.slow
@pytest.mark.parametrize("row", EMBED_ROWS, ids=lambda row: row.name)
def test_embeddings_equal_their_oracle(row: Row, tmp_path: Path) -> None:
    published, artifact = export(row, tmp_path)
    with PoolingModel.load(artifact, variant="cpu_fp32") as model:
        assert model.manifest.limits.max_model_len >= MAX_LENGTH
        texts = make_texts(model.count_tokens)
        ids = tokens_of(artifact, texts)
        expected = np.stack([row.pool(row.rows(published, text)) for text in ids])
        found = model.embed(texts, normalize=False)
        assert_same(expected, found)
        record(
            "embed",
            row.name,
            "numpy" if row.rows is moe_rows else "transformers",
            largest_difference([expected], [found]) / float(np.abs(expected).max()),
        )
        assert np.array_equal(np.concatenate([model.embed(text, normalize=False) for text in texts]), found)
        assert np.array_equal(model.embed(texts[::-1], normalize=False)[::-1], found)
    with PoolingModel.load(artifact, variant="portable_fp32") as model:
        assert_same(expected, model.embed(texts, normalize=False))
    single = [ids[0][:1], *ids]
    expected = np.stack([row.pool(row.rows(published, single[0])), *expected])
    for side in ("left", "right"):
        assert_same(expected, run_portable(artifact, single, side))


@pytest.mark.slow
@pytest.mark.parametrize("row", CLASSIFY_ROWS, ids=lambda row: row.name)
def test_logits_equal_their_oracle(row: Row, tmp_path: Path) -> None:
    published, artifact = export(row, tmp_path)
    oracle: Any = published.model
    for variant in ("cpu_fp32", "portable_fp32"):
        with PoolingModel.load(artifact, variant=variant) as model, torch.no_grad():
            texts = make_texts(model.count_tokens)
            ids = tokens_of(artifact, texts)
            expected = [oracle(input_ids=torch.tensor([text])).logits[0].numpy() for text in ids]
            found = model.classify(texts, use_activation=False)
            difference = largest_difference(expected, list(found))
            record(f"classify, {variant}", row.name, "transformers", difference)
            assert difference <= TOLERANCE
            pairs = load_tokenizer(artifact)([texts[8]] * 5, texts[5:10])["input_ids"]
            scores = [oracle(input_ids=torch.tensor([pair])).logits[0].sigmoid().numpy() for pair in pairs]
            found = model.score(texts[8], texts[5:10])
            assert largest_difference([np.concatenate(scores)], [np.asarray(found)]) <= TOLERANCE


@pytest.mark.parametrize("task", LORA_TASKS)
def test_every_adapter_is_merged(task: str, tmp_path: Path) -> None:
    published = publish_jina(task=task)
    folder = published.save(tmp_path / "checkpoint")
    weights = find_backbone(folder, {"lora_task": task}, trust_remote_code=False).open_weights()
    oracle: Any = published.model
    for name, expected in oracle.state_dict().items():
        found = weights.load(f"roberta.{name}")
        assert weights.shape(f"roberta.{name}") == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-6), name


def test_unknown_adapter_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    folder = publish_jina(task="separation").save(tmp_path / "checkpoint")
    with pytest.raises(InputError, match=r"lora_task 'retrieval' is unknown") as caught:
        find_backbone(folder, {"lora_task": "retrieval"}, trust_remote_code=False)
    assert all(task in str(caught.value) for task in LORA_TASKS)
    plain = publish_jina().save(tmp_path / "plain")
    with pytest.raises(InputError, match=r"lora_task 'separation' is unknown: the checkpoint has no adapters"):
        find_backbone(plain, {"lora_task": "separation"}, trust_remote_code=False)


@pytest.mark.parametrize(
    ("publish", "changes", "message"),
    [
        (publish_gte, {"logn_attention_scale": True}, "logn_attention_scale"),
        (publish_gte, {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.5}}, "mixed_b"),
        (publish_nomic, {"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        (publish_nomic_moe, {"num_shared_experts": 1}, "num_shared_experts"),
    ],
)
def test_settings_that_no_class_has_are_refused(
    publish: Callable[[], Published], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = publish().save(tmp_path / "checkpoint")
    with pytest.raises(UnsupportedArchitecture, match=message):
        find_backbone(folder, changes, trust_remote_code=False)


def marked_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of jina-colbert-v2: two markers beside the words."""
    tokenizer = xlm_roberta_tokenizer()
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    return tokenizer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* texts were longer than .* and were cut:UserWarning")
def test_colbert_encodes_queries_and_documents_as_its_metadata_say(tmp_path: Path) -> None:
    tokenizer = marked_tokenizer()
    published = replace(publish_jina("HF_ColBERT", vocab_size=len(tokenizer)), tokenizer=lambda: tokenizer)
    native = {**published.model.config.to_dict(), "architectures": ["HF_ColBERT"]}
    oracle = load_oracle(with_metadata(replace(published, config=native).save(tmp_path / "native")))
    export_model(with_metadata(published.save(tmp_path / "checkpoint")), tmp_path / "artifact")
    texts = make_texts(lambda texts: [len(text) for text in tokenizer(texts)["input_ids"]])[:16]
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = [*model.embed_queries(texts, truncate=True), *model.embed_documents(texts)]
    with torch.no_grad():
        expected = [*oracle.encode_query(texts), *oracle.encode_document(texts)]
    difference = largest_difference([rows.numpy() if hasattr(rows, "numpy") else rows for rows in expected], found)
    record("colbert", "jina colbert", "sentence-transformers", difference)
    assert difference <= TOLERANCE


def with_metadata(folder: Path) -> Path:
    """Add Stanford's ``artifact.metadata`` with the markers and lengths of jina-colbert-v2."""
    metadata = {
        "query_token_id": MARKERS[0],
        "doc_token_id": MARKERS[1],
        "query_maxlen": 32,
        "doc_maxlen": MAX_LENGTH,
        "attend_to_mask_tokens": True,
        "mask_punctuation": True,
    }
    (folder / "artifact.metadata").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_colbert_projects_the_rows(tmp_path: Path) -> None:
    row = Row(
        name="jina colbert",
        publish=lambda: publish_jina("HF_ColBERT"),
        options={"hf_overrides": {"architectures": ["ColBERTJinaRobertaModel"]}},
    )
    published, artifact = export(row, tmp_path)
    for variant in ("cpu_fp32", "portable_fp32"):
        with PoolingModel.load(artifact, variant=variant) as model:
            texts = make_texts(model.count_tokens)
            expected = [projected(published, text) for text in tokens_of(artifact, texts)]
            found = model.token_embed(texts)
            difference = largest_difference(expected, found)
            record(f"token_embed, {variant}", row.name, "transformers", difference)
            assert difference <= TOLERANCE
