"""How far GELU by a hyperbolic tangent, cuBLASLt's, moves the vectors of all-MiniLM-L6-v2, beside rounding to fp16.

    python benchmarks/gelu_tanh.py

By transformers on the CPU, mean pooling, on documents of the corpus that ships for the fidelity report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from models import minilm_dir
from numpy.typing import NDArray

NUM_TEXTS, BATCH_SIZE, MAX_LENGTH = 256, 32, 256
EXACT, TANH = "gelu", "gelu_pytorch_tanh"


def embed(texts: Sequence[str], activation: str, dtype: str) -> NDArray[np.float64]:
    """Return unit vectors (num_texts, hidden_size)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    model = AutoModel.from_pretrained(minilm_dir(), hidden_act=activation, dtype=getattr(torch, dtype)).eval()
    pooled = []
    for start in range(0, len(texts), BATCH_SIZE):
        options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
        batch = tokenizer(list(texts[start : start + BATCH_SIZE]), **options)
        with torch.no_grad():
            rows, mask = model(**batch).last_hidden_state.float(), batch.attention_mask[..., None].float()
        pooled.append(((rows * mask).sum(1) / mask.sum(1)).numpy())
    vectors = np.concatenate(pooled).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from poolgraph.runtime.fidelity_corpus import shipped_corpus

    texts = shipped_corpus().documents[:NUM_TEXTS]
    exact = embed(texts, EXACT, "float32")
    print(f"{len(texts)} texts; 1 - cosine to GELU in fp32: mean, largest")
    for activation, dtype in ((TANH, "float32"), (EXACT, "float16"), (TANH, "float16")):
        distances = 1 - (exact * embed(texts, activation, dtype)).sum(1)
        print(f"{activation:<18} {dtype}  {distances.mean():.1e}  {distances.max():.1e}")


if __name__ == "__main__":
    main()
