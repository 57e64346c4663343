"""What a caller may name as a model: an artifact, a checkpoint folder or a hub id; told apart without loading any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.graphs.manifest import MANIFEST_FILE

CHECKPOINT_FILES: Final = ("config.json", "modules.json")
"""A folder with either of these is taken for a checkpoint."""

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*/*.safetensors", "*/*.bin")
_PROBES: Final = "probes.json"
_SHOWN_CHARACTERS: Final = 80


def check_model_path(model: str | Path) -> Path:
    """Return the path that a model's name may stand for.

    Raises:
        InputError: not a str or Path, a name that no file system takes, or a local path where no folder is.
        ArtifactError: the folder is an artifact that lost its manifest.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"the model must be a str or Path (an artifact, a checkpoint folder or a hub id), not {_describe(model)}",
            parameter="model",
            value=model,
        )
    path = Path(model)
    try:
        exists = path.exists()
    except OSError as error:
        shown = str(model)[:_SHOWN_CHARACTERS]
        raise InputError(f"{shown!r}... cannot be a path or a hub id: {error.strerror}", parameter="model") from error
    if not exists and is_local_path(model):
        raise InputError(
            f"no such folder: {model}. A model is an artifact, a checkpoint folder or a hub id such as 'owner/name'",
            parameter="model",
            value=str(model),
        )
    _refuse_damaged(path)
    return path


def is_local_path(model: str | Path) -> bool:
    """Return whether a name can only be a path: it starts with /, . or ~, or has more than one slash."""
    return str(model).startswith(("/", ".", "~")) or len(Path(model).parts) > 2


def is_checkpoint_dir(path: Path) -> bool:
    """Return whether ``path`` is a directory with the configuration of a checkpoint."""
    return any((path / name).is_file() for name in CHECKPOINT_FILES)


def _refuse_damaged(path: Path) -> None:
    """Checkpoints may bring a folder onnx/ of their own, but they have weights beside it."""
    if not path.is_dir() or is_artifact(path):
        return
    has_weights = any(True for pattern in _WEIGHTS for _ in path.glob(pattern))
    if (path / _PROBES).is_file() or ((path / "onnx").is_dir() and not has_weights):
        raise ArtifactError(
            f"{MANIFEST_FILE} is missing from the artifact {path}; "
            "export the checkpoint again or copy the artifact again"
        )


def _describe(value: object) -> str:
    return "None" if value is None else type(value).__name__
