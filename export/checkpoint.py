"""A checkpoint on disk: its files, its configuration and its tensors by name, read one at a time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from poolgraph.errors import ExportError, InputError
from poolgraph.graphs.artifact import hash_file
from poolgraph.graphs.manifest import MANIFEST_FILE
from poolgraph.runtime.model_paths import check_model_path

if TYPE_CHECKING:
    import torch

UNREAD_FOLDERS = ("onnx", "openvino", ".git", ".cache")
"""Folders of a checkpoint repository that hold other builds of the model, or nothing of it."""


class _ShardIndex(msgspec.Struct, frozen=True):
    """What is read of ``model.safetensors.index.json``."""

    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One file of weights and the names of its tensors; nothing in it is ever unpickled beyond tensors."""

    path: Path
    names: frozenset[str]

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor; memory for that tensor alone."""
        if self.path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(self.path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        return _load_bin(self.path)[name].contiguous()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        if self.path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(self.path, framework="pt") as file:
                return tuple(file.get_slice(name).get_shape())
        return tuple(_load_bin(self.path)[name].shape)


class WeightFolder:
    """The tensors of one folder: safetensors, sharded or not, else a ``.bin`` read without unpickling code.

    Args:
        folder: Where ``model.safetensors`` (or its index, or ``pytorch_model.bin``) lies; or a file of tensors.

    Raises:
        ExportError: no weights, a shard that is missing, or a file that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = tuple(open_tensor_file(path) for path in _weight_files(folder))
        self._file_of = {name: file for file in self.files for name in file.names}

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._file_of)

    def load(self, name: str) -> torch.Tensor:
        """Read the tensor called ``name``."""
        return self._file_of[name].load(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor called ``name``."""
        return self._file_of[name].shape(name)

    def stored_name(self, name: str) -> str:
        """Return the name itself: nothing is renamed here."""
        return name


@dataclass(frozen=True)
class Checkpoint:
    """A folder of Hugging Face or sentence-transformers files.

    Attributes:
        folder: The folder.
        model: What the user called it, a hub id or the folder's name.
        revision: The hub revision, None for a folder.
    """

    folder: Path
    model: str
    revision: str | None

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of the checkpoint, None where there is none.

        Raises:
            ExportError: it is no JSON.
        """
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ExportError(f"{name} of checkpoint {self.model!r} is not valid JSON: {error}") from error

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the names and hashes of the checkpoint's files."""
        digest = hashlib.sha256()
        for file in sorted(self.folder.rglob("*")):
            relative = file.relative_to(self.folder)
            if file.is_file() and relative.parts[0] not in UNREAD_FOLDERS:
                digest.update(f"{relative.as_posix()}\0{hash_file(file)}\n".encode())
        return digest.hexdigest()


def open_checkpoint(model: str | Path, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint: an existing folder, or a hub id that is downloaded (or found in the hub's cache).

    Raises:
        InputError: neither a folder with a configuration nor a hub id that can be had.
    """
    folder = check_model_path(model)
    if folder.is_dir():
        check_merged(folder)
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise InputError(f"{folder} has neither config.json nor modules.json, so it is not a checkpoint")
        return Checkpoint(folder=folder, model=folder.resolve().name, revision=revision)
    return Checkpoint(folder=_download(str(model), revision), model=str(model), revision=revision)


def check_merged(folder: Path) -> None:
    """Check that a folder holds whole weights, not an adapter beside or in place of them.

    Raises:
        InputError: it has an adapter of peft's.
    """
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter (adapter_config.json): merge it into the model, with merge_and_unload() of "
            "peft, and export what save_pretrained() then writes"
        )


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    ignored = [f"{name}/*" for name in UNREAD_FOLDERS] + ["*.onnx", "*.msgpack", "*.h5", "*.ot", "*.gguf"]
    try:
        return Path(snapshot_download(model, revision=revision, ignore_patterns=ignored))
    except Exception as error:
        raise InputError(
            f"{model!r} is neither a folder here nor a model of the hub that can be had"
            f"{f' at revision {revision}' if revision else ''}: {error}"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            shards = _read_shards(index)
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ExportError(f"{index.name} names {missing}, which are not in the checkpoint")
            return [folder / shard for shard in shards]
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
    if (folder / MANIFEST_FILE).is_file():
        raise InputError(f"{folder} is an artifact already; export the checkpoint that it was made from")
    raise ExportError(f"no weights in {folder.name}: looked for model.safetensors, pytorch_model.bin and their shards")


def _read_shards(index: Path) -> list[str]:
    try:
        content = msgspec.json.decode(index.read_bytes(), type=_ShardIndex)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportError(f"{index.name} is not an index of shards: {error}") from error
    shards = sorted(set(content.weight_map.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ExportError(f"{index.name} names {outside}, which are no files beside it")
    return shards


def open_tensor_file(path: Path) -> TensorFile:
    """Open a file of tensors.

    Raises:
        ExportError: it is none.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return TensorFile(path, frozenset(file.keys()))
        return TensorFile(path, frozenset(_load_bin(path)))
    except Exception as error:
        raise ExportError(f"{path.name} cannot be read as a file of tensors: {error}") from error


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    import torch

    tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return tensors
