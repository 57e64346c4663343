"""What stands between an artifact's backbone and its answers, as the checkpoint's own files name it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from poolgraph.errors import ArtifactError

_T = TypeVar("_T")

AUTO_ENCODER: Final = "SparseAutoEncoder"
"""The kind of module whose numbers are features of its own, and not words of a vocabulary."""


class _Module(msgspec.Struct):
    """A row of ``modules.json``."""

    type: str = ""


class _Settings(msgspec.Struct):
    """What matters of ``config_sentence_transformers.json``."""

    truncate_dim: int | None = None


def read_head_kinds(directory: Path) -> list[str]:
    """Return the kinds of the modules behind the pooling, as an artifact's copies of the checkpoint's files name them.

    Raises:
        ArtifactError: a file is not what sentence-transformers writes.
    """
    modules = _read_json(directory / "modules.json", list[_Module])
    settings = _read_json(directory / "config_sentence_transformers.json", _Settings)
    kinds = [module.type.rpartition(".")[2] for module in modules or ()]
    shortened = settings is not None and settings.truncate_dim is not None
    return [kind for kind in kinds if kind not in ("Transformer", "Pooling")] + (["Truncate"] if shortened else [])


def _read_json(path: Path, kind: type[_T]) -> _T | None:
    """Read a file of JSON, None where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; export the checkpoint again") from error
