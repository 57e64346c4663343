"""A tiny BGE-M3, published as BAAI/bge-m3 is, and its answers by plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_models import HeadSpec, save_checkpoint
from transformers import AutoTokenizer, XLMRobertaModel

from poolgraph.export.probes import PROBE_SENTENCES

OVERRIDES = {"architectures": ["BgeM3EmbeddingModel"]}
HIDDEN_SIZE, VECTOR_SIZE = 32, 32


def save_bge_m3(folder: Path) -> Path:
    """Save the backbone with its modules, and the two layers beside it."""
    save_checkpoint(folder, "XLMRobertaModel", HeadSpec(pooling={"pooling_mode_cls_token": True}))
    return add_layers(folder)


def add_layers(folder: Path) -> Path:
    """Save the two layers beside a backbone; about half of the words weigh something."""
    generator = torch.Generator().manual_seed(3)
    vector, weight = (8 * torch.randn(size, HIDDEN_SIZE, generator=generator) for size in (VECTOR_SIZE, 1))
    vector_bias = torch.randn(VECTOR_SIZE, generator=generator)
    inputs = AutoTokenizer.from_pretrained(folder)(PROBE_SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        rows = XLMRobertaModel.from_pretrained(folder, dtype=torch.float32).eval()(**inputs).last_hidden_state[0]
    torch.save({"weight": vector, "bias": vector_bias}, folder / "colbert_linear.pt")
    torch.save({"weight": weight, "bias": -(rows @ weight.T).median(0).values}, folder / "sparse_linear.pt")
    return folder


@dataclass(frozen=True)
class BgeM3Answer:
    """One text's answers.

    Attributes:
        dense: (hidden_size,), normalized.
        vectors: (num_tokens - 1, vector_size), normalized, without the first token.
        weights: (num_tokens - 2,), without the first and the last token.
        words: The largest weight of each word.
    """

    dense: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    words: dict[int, float]


def answer_bge_m3(folder: Path, texts: list[str]) -> list[BgeM3Answer]:
    """Answer as FlagEmbedding's M3 model defines it, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = XLMRobertaModel.from_pretrained(folder, dtype=torch.float32).eval()
    layers = {name: torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("colbert", "sparse")}
    skipped = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    answers = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            rows = backbone(**inputs).last_hidden_state[0]
        vectors = torch.nn.functional.linear(rows[1:], layers["colbert"]["weight"], layers["colbert"]["bias"])
        weights = torch.nn.functional.linear(rows, layers["sparse"]["weight"], layers["sparse"]["bias"]).relu()[:, 0]
        words: dict[int, float] = {}
        for token_id, weight in zip(inputs["input_ids"][0].tolist(), weights.tolist(), strict=True):
            if weight > 0 and token_id not in skipped:
                words[token_id] = max(words.get(token_id, 0.0), weight)
        answers.append(
            BgeM3Answer(
                dense=torch.nn.functional.normalize(rows[0], dim=0).numpy(),
                vectors=torch.nn.functional.normalize(vectors, dim=1).numpy(),
                weights=weights[1:-1].numpy(),
                words=words,
            )
        )
    return answers
