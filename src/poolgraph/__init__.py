"""poolgraph compiles pooling models to ONNX graphs and runs them. Public names resolve on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ClassificationRequestOutput": "poolgraph.runtime.outputs",
    "EmbeddingRequestOutput": "poolgraph.runtime.outputs",
    "LLM": "poolgraph.runtime.llm",
    "LateChunkingParams": "poolgraph.config",
    "PoolerConfig": "poolgraph.config",
    "PoolingModel": "poolgraph.runtime.model",
    "PoolingParams": "poolgraph.config",
    "PoolingRequestOutput": "poolgraph.runtime.outputs",
    "PoolgraphError": "poolgraph.errors",
    "ScoringRequestOutput": "poolgraph.runtime.outputs",
    "export_model": "poolgraph.export.exporter",
    "quantize_embeddings": "poolgraph.runtime.quantization",
    "verify_artifact": "poolgraph.runtime.verify",
}

__all__ = [
    "LLM",
    "ClassificationRequestOutput",
    "EmbeddingRequestOutput",
    "LateChunkingParams",
    "PoolerConfig",
    "PoolgraphError",
    "PoolingModel",
    "PoolingParams",
    "PoolingRequestOutput",
    "ScoringRequestOutput",
    "export_model",
    "quantize_embeddings",
    "verify_artifact",
]

if TYPE_CHECKING:
    from poolgraph.config import LateChunkingParams, PoolerConfig, PoolingParams
    from poolgraph.errors import PoolgraphError
    from poolgraph.export.exporter import export_model
    from poolgraph.runtime.llm import LLM
    from poolgraph.runtime.model import PoolingModel
    from poolgraph.runtime.outputs import (
        ClassificationRequestOutput,
        EmbeddingRequestOutput,
        PoolingRequestOutput,
        ScoringRequestOutput,
    )
    from poolgraph.runtime.quantization import quantize_embeddings
    from poolgraph.runtime.verify import verify_artifact


def __getattr__(name: str) -> Any:
    """Import the room that defines ``name``; importing poolgraph itself loads none."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'poolgraph' has no attribute {name!r}; it has {sorted(_PUBLIC)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
