"""Jamba against transformers: Mamba layers, attention and experts, a text alone, in batches and between padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architecture_graphs import MAX_LENGTH, check_graphs
from parity_table import TOLERANCE, largest_difference, record
from tiny_decoders import draw_wide
from tiny_heads import TINY_BACKBONES
from tiny_models import VOCAB_SIZE
from transformers import AutoTokenizer, JambaConfig, JambaForSequenceClassification

from poolgraph import PoolingModel, export_model
from poolgraph.export.arch_jamba import softplus
from poolgraph.export.probes import PROBE_SENTENCES

NUM_LABELS = 2


def save(folder: Path) -> Path:
    """A Mamba layer, then attention; every other feed-forward layer a mixture of four experts, two of them chosen."""
    config = JambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=0,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=16,
        mamba_dt_rank=16,
        use_mamba_kernels=False,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=0,
        num_labels=NUM_LABELS,
    )
    draw_wide(JambaForSequenceClassification(config), seed=4).save_pretrained(folder)
    tokenizer = TINY_BACKBONES["LlamaModel"].tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_jamba_equals_transformers(tmp_path: Path) -> None:
    checkpoint, artifact = save(tmp_path / "checkpoint"), tmp_path / "artifact"
    export_model(checkpoint, artifact)
    model = JambaForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.config.pad_token_id = None

    def oracle(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
        return logits

    difference = check_graphs(artifact, oracle)
    record("classify", "JambaForSequenceClassification", "transformers", difference)
    assert difference <= TOLERANCE
    texts = ["", *PROBE_SENTENCES, " ".join(PROBE_SENTENCES)]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = np.stack([oracle(dict(tokenizer(text, return_tensors="pt"))).numpy() for text in texts])
    with PoolingModel.load(artifact) as answering:
        found = answering.classify(texts)  # logits, unless a request asks for the activation
        assert max(answering.count_tokens(texts)) > 128
    assert largest_difference([expected], [found]) <= TOLERANCE * np.abs(expected).max()


def test_softplus_equals_torch_where_the_logarithm_is_near_1() -> None:
    values = torch.tensor([-80.0, -30.0, -16.7, -8.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 8.0, 30.0, 100.0])
    torch.testing.assert_close(softplus(values), torch.nn.functional.softplus(values), rtol=1e-6, atol=0)
