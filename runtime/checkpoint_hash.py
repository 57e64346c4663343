"""The content hash of a checkpoint folder, quick the second time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from threading import get_ident
from typing import Final

import msgspec

REMEMBERED_FROM_BYTES: Final = 1 << 20
"""Files from this size on are hashed once and remembered by path, size and time of change."""


class HashedFile(msgspec.Struct, frozen=True, array_like=True):
    """What a large file's hash was, and the file's size and time of change then."""

    size: int
    mtime_ns: int
    sha256: str


def hash_checkpoint(folder: Path, *, memory_file: Path) -> str:
    """Hash the names, sizes and contents of a folder's files, hidden ones aside.

    Args:
        folder: The checkpoint; where it lies and when it was written do not enter the hash.
        memory_file: JSON in which hashes of large files are remembered; one that cannot be read is started afresh.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    memory = _read_memory(memory_file)
    found: dict[str, HashedFile] = {}
    rows = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, _hash_file(path, memory, found)) for path in files
    ]
    if found:
        _write_memory(memory_file, {**memory, **found})
    return sha256(msgspec.json.encode(rows)).hexdigest()


def _hash_file(path: Path, memory: Mapping[str, HashedFile], found: dict[str, HashedFile]) -> str:
    status = path.stat()
    name = str(path.resolve())
    known = memory.get(name)
    if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known.sha256
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if status.st_size >= REMEMBERED_FROM_BYTES:
        found[name] = HashedFile(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=digest)
    return digest


def _read_memory(memory_file: Path) -> dict[str, HashedFile]:
    try:
        return msgspec.json.decode(memory_file.read_bytes(), type=dict[str, HashedFile])
    except (OSError, msgspec.MsgspecError):
        return {}


def _write_memory(memory_file: Path, memory: Mapping[str, HashedFile]) -> None:
    memory_file.parent.mkdir(parents=True, exist_ok=True)
    draft = memory_file.with_name(f"{memory_file.stem}.{os.getpid()}-{get_ident()}.tmp")
    draft.write_bytes(msgspec.json.encode({name: row for name, row in memory.items() if Path(name).exists()}))
    draft.replace(memory_file)
