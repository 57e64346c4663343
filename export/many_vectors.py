"""BGE-M3's files beside its backbone: the layers of its token vectors and of its weights of words."""

from __future__ import annotations

from pathlib import Path

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head import HeadStep, StoredTensor

FILES = {"vector": "colbert_linear.pt", "weight": "sparse_linear.pt"}
"""By layer of ``poolers.head.WeightedVectors``."""


def plan_weighted_vectors(folder: Path) -> HeadStep:
    """Plan the vectors of tokens, each with the weight of its word.

    Raises:
        ExportError: a file is missing, or has other tensors.
    """
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        raise ExportError(f"BgeM3EmbeddingModel needs {missing} beside its config.json, as in BAAI/bge-m3")
    tensors = {
        f"{layer}.{part}": StoredTensor(folder=folder / name, name=part)
        for layer, name in FILES.items()
        for part in ("weight", "bias")
    }
    shapes = {parameter: _shape(stored) for parameter, stored in tensors.items()}
    out_features, in_features = shapes["vector.weight"]
    if shapes["weight.weight"] != (1, in_features):
        raise ExportError(
            f"{FILES['weight']} has a layer of shape {shapes['weight.weight']}; a word's weight is one number of "
            f"{in_features}, so it should be (1, {in_features})"
        )
    return HeadStep(
        kind="WeightedVectors", config={"in_features": in_features, "out_features": out_features}, tensors=tensors
    )


def _shape(stored: StoredTensor) -> tuple[int, ...]:
    file = WeightFolder(stored.folder)
    if stored.name not in file.names:
        raise ExportError(f"{stored.folder.name} lacks the tensor {stored.name}; it has {sorted(file.names)}")
    return file.shape(stored.name)
