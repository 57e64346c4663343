"""sentence-transformers on torch: ``encode``, which sorts by length itself, in batches of 32 (its default) or of 8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from poolgraph.runtime.cpu import count_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

label = "sentence-transformers"

TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def load(checkpoint_dir: Path, artifact_dir: Path, cache_dir: Path, *, precision: str) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(count_cores())
    dtype = getattr(torch, TORCH_DTYPES[precision])
    return SentenceTransformer(str(checkpoint_dir), device="cpu", model_kwargs={"dtype": dtype})


def embed(engine: SentenceTransformer, texts: list[str], *, batch_size: int) -> NDArray[np.float32]:
    return engine.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
