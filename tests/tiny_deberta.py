"""Tiny seeded DeBERTa checkpoints: every kind of disentangled attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_graphs import MAX_LENGTH, TextOracle
from tiny_heads import widen
from tiny_models import SIZES, VOCAB_SIZE, bert_tokenizer
from transformers import DebertaV2Config

RERANKER = {
    "relative_attention": True,
    "position_buckets": 32,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""config.json of deberta-v3-base and mxbai-rerank-base-v1; 256 buckets there."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DebertaV2ForSequenceClassification": ("sequence", {"num_labels": 1}),
    "v2 with a convolution": ("sequence", {"num_labels": 3, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "projections of positions": ("sequence", {"num_labels": 1, "share_att_key": False, "type_vocab_size": 2}),
    "content to position": ("sequence", {"share_att_key": False, "pos_att_type": ["c2p"], "norm_rel_ebd": "none"}),
    "position to content": ("sequence", {"pos_att_type": "p2c", "max_relative_positions": 100}),
    "distances without buckets": ("sequence", {"position_buckets": -1, "max_relative_positions": 40}),
    "no relative attention": ("sequence", {"relative_attention": False, "position_biased_input": True}),
    "DebertaV2ForTokenClassification": ("token", {"num_labels": 5}),
}


def save(folder: Path, name: str, cls: str, longest: int = MAX_LENGTH) -> Path:
    config = DebertaV2Config(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=longest,
        pad_token_id=0,
        **SIZES,
        **(RERANKER | KINDS[name][1]),
    )
    torch.manual_seed(2)
    model = getattr(transformers, cls)(config)
    widen(model)
    model.save_pretrained(folder)
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(folder)
    return folder


def oracle_of(folder: Path, cls: str) -> TextOracle:
    """Logits of transformers' class, of one text."""
    model = getattr(transformers, cls).from_pretrained(folder, dtype=torch.float32).eval()
    return lambda inputs: model(**inputs).logits[0]
