"""Tiny sparse encoders, saved by sentence-transformers itself, and its answers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling
from tiny_heads import save_model, widen
from tiny_models import SIZES, bert_tokenizer
from torch import nn


def save_splade(folder: Path, name: str, *, pooling: dict[str, Any] | None = None, **options: Any) -> Path:
    """Save a masked language model and its SpladePooling.

    Args:
        folder: Not there yet.
        name: A backbone of tests/tiny_heads.py.
        pooling: Arguments of SpladePooling.
        **options: Of SparseEncoder.
    """
    checkpoint = save_model(folder.with_name(f"{folder.name}-mlm"), name, name.replace("Model", "ForMaskedLM"))
    return save_encoder(folder, checkpoint, [SpladePooling(**(pooling or {}))], task="fill-mask", **options)


def save_masked(folder: Path, family: str, config: Mapping[str, Any]) -> Path:
    """Save a masked language model of transformers, by what its classes' names begin with, and a SpladePooling."""
    torch.manual_seed(0)
    settings = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}ForMaskedLM")(settings)
    widen(model)
    source = folder.with_name(f"{folder.name}-mlm")
    model.save_pretrained(source)
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(source)
    return save_encoder(folder, source, [SpladePooling()], task="fill-mask")


HIDDEN, FEATURES, KEPT = SIZES["hidden_size"], 96, 8
"""Of a tiny auto-encoder: widths, and how many features are kept."""


def auto_encoder(**changes: Any) -> SparseAutoEncoder:
    """A sparse auto-encoder with wide weights."""
    torch.manual_seed(1)
    module = SparseAutoEncoder(**{"input_dim": HIDDEN, "hidden_dim": FEATURES, "k": KEPT, "k_aux": 16, **changes})
    widen(module)
    return module


def save_csr(folder: Path, behind: Sequence[nn.Module], pooling: str = "mean", **options: Any) -> Path:
    """Save a SparseEncoder of a BERT, its pooling and the modules behind that."""
    source = save_model(folder.with_name(f"{folder.name}-source"), "BertModel", "BertModel")
    return save_encoder(folder, source, [Pooling(HIDDEN, pooling), *behind], **options)


def save_encoder(
    folder: Path, source: Path, behind: Sequence[nn.Module], *, task: str = "feature-extraction", **options: Any
) -> Path:
    """Save a SparseEncoder of a checkpoint and the modules behind it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = Transformer(str(source), transformer_task=task)
        SparseEncoder(modules=[transformer, *behind], **options).save_pretrained(str(folder))
    return folder


def encode(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    """The oracle's sparse embeddings, (num_texts, embedding_size), one text at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(folder), device="cpu")
        rows = [encoder.encode(text, **options).to_dense() for text in texts]
    return torch.stack(rows).numpy()
