"""Tiny SPLADE checkpoints, saved by sentence-transformers itself, and its answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tiny_heads import save_model


def save_splade(folder: Path, name: str, *, pooling: dict[str, Any] | None = None, **options: Any) -> Path:
    """Save a masked language model and its SpladePooling.

    Args:
        folder: Not there yet.
        name: A backbone of tests/tiny_heads.py.
        pooling: Arguments of SpladePooling.
        **options: Of SparseEncoder.
    """
    checkpoint = save_model(folder.with_name(f"{folder.name}-mlm"), name, name.replace("Model", "ForMaskedLM"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = Transformer(str(checkpoint), transformer_task="fill-mask")
        SparseEncoder(modules=[transformer, SpladePooling(**(pooling or {}))], **options).save_pretrained(str(folder))
    return folder


def encode(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    """The oracle's weights of words, (num_texts, vocab_size), one text at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(folder), device="cpu")
        rows = [encoder.encode(text, **options).to_dense() for text in texts]
    return torch.stack(rows).numpy()
