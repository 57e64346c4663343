"""Checkpoints whose numbers leave fp16's range."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def overflowing(checkpoint: Path, folder: Path, pattern: str | tuple[str, ...], factor: float) -> Path:
    """A copy whose weights that end with a pattern are that many times as large."""
    shutil.copytree(checkpoint, folder)
    file = folder / "model.safetensors"
    tensors = {name: tensor * factor if name.endswith(pattern) else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder
