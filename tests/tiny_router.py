"""Tiny inference-free SPLADE checkpoints: a Router with a table for queries, saved by sentence-transformers itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Module, Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from tiny_heads import TINY_BACKBONES, save_model
from transformers import AutoTokenizer

NAME = "BertModel"


def save_router(
    folder: Path,
    *,
    query_length: int = 40,
    router: dict[str, Any] | None = None,
    document_head: Sequence[Module] = (),
    **options: Any,
) -> Path:
    """Save a Router of a table and a SPLADE.

    Args:
        folder: Not there yet.
        query_length: Limit of queries in tokens.
        router: Arguments of ``Router.for_query_document``.
        document_head: Modules behind the pooling of documents.
        **options: Of SparseEncoder.
    """
    size = len(TINY_BACKBONES[NAME].tokenizer().get_vocab())
    mlm = save_model(folder.with_name(f"{folder.name}-mlm"), NAME, "BertForMaskedLM", vocab_size=size)
    tokenizer = AutoTokenizer.from_pretrained(mlm)
    tokenizer.model_max_length = query_length
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    weight[::7] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        routes = Router.for_query_document(
            query_modules=[SparseStaticEmbedding(tokenizer, weight)],
            document_modules=[Transformer(str(mlm), transformer_task="fill-mask"), SpladePooling(), *document_head],
            **(router or {}),
        )
        SparseEncoder(modules=[routes], **options).save_pretrained(str(folder))
    return folder
