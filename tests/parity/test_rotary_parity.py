"""Rotary encoders in their published layouts: adapters, what is refused, and queries of late interaction."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_table import TOLERANCE, WORDS, largest_difference, record
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
from transformers import PreTrainedTokenizerFast

from poolgraph import PoolingModel, export_model
from poolgraph.errors import InputError, UnsupportedArchitecture
from poolgraph.export.backbone import find_backbone

MARKERS = ("[QueryMarker]", "[DocumentMarker]")

LENGTHS = (3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 100, 129, 200, 257, 380, 513, 600, 640)
"""Lengths of the texts in tokens, at most; those beyond TRAINED_LENGTH are scaled where the base grows."""


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
