"""poolgraph's own runtime on the CPU provider, the artifact's cpu variant, its default plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from poolgraph.runtime.model import PoolingModel

label = "poolgraph"


def load(checkpoint_dir: Path, artifact_dir: Path, cache_dir: Path, *, precision: str) -> PoolingModel:
    from poolgraph import PoolingModel

    return PoolingModel.load(artifact_dir, provider="cpu", precision=precision)


def embed(engine: PoolingModel, texts: list[str]) -> NDArray[np.float32]:
    return engine.embed(texts, truncate=True)
