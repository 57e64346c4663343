"""Artifacts of decoders and of encoders with windows against transformers: the last token's row, a text at a time."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_table import largest_difference, record
from portable_graphs import assert_same, run_portable
from tiny_decoders import MAX_LENGTH, TINY_DECODERS, WINDOW, save_decoder
from transformers import AutoModel, AutoTokenizer

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES


def mixed_texts() -> list[str]:
    """Texts of random words, from none to past every window; each fits."""
    source = random.Random(5)
    words = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
    return ["", "a", *(" ".join(source.choices(words, k=source.randint(1, 14))) for _ in range(24))]


def reference_rows(checkpoint: Path, ids: list[list[int]]) -> list[np.ndarray]:
    """Every token's row by transformers' eager attention, a text alone."""
    model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([text])).last_hidden_state[0].numpy() for text in ids]


@pytest.mark.parametrize("name", TINY_DECODERS)
def test_a_decoder_equals_transformers(name: str, tmp_path: Path) -> None:
    checkpoint, artifact = save_decoder(tmp_path / "checkpoint", name), tmp_path / "artifact"
    export_model(checkpoint, artifact, task="embed", pooler_config={"pooling_type": "LAST"})
    texts = mixed_texts()
    ids = AutoTokenizer.from_pretrained(checkpoint)(texts)["input_ids"]
    assert max(map(len, ids)) in range(4 * WINDOW, MAX_LENGTH + 1)
    expected = np.stack([rows[-1] for rows in reference_rows(checkpoint, ids)])
    with PoolingModel.load(artifact, variant="cpu_fp32") as model:
        found = model.embed(texts, normalize=False)
        assert np.array_equal(np.concatenate([model.embed(text, normalize=False) for text in texts]), found)
        assert np.array_equal(model.embed(texts[::-1], normalize=False)[::-1], found)
    assert_same(expected, found)
    record("embed(normalize=False)", f"{name} pooled by LAST", "transformers", largest_difference([expected], [found]))
    with PoolingModel.load(artifact, variant="portable_fp32") as model:
        assert_same(expected, model.embed(texts, normalize=False))
    for side in ("left", "right"):
        assert_same(expected, run_portable(artifact, ids, side))
