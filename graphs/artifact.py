"""The artifact directory: opened with its checks, written under a temporary name and renamed when complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import MANIFEST_FILE, FileRecord, Manifest, encode_manifest, parse_manifest

HASHED_ON_OPEN = (".onnx", "tokenizer.json", "query_weights.npy")
"""Files whose hashes are checked whenever an artifact is opened: small, and decisive for the answers."""

STAGING_MARK = ".unfinished-export-"
"""In the name of a directory until its export is complete; renaming it is the one step that makes it an artifact."""

HashCheck = Literal["graphs", "all"]


def is_artifact(path: str | Path) -> bool:
    """Whether ``path`` is a directory with a manifest in it."""
    return (Path(path) / MANIFEST_FILE).is_file()


def open_artifact(path: str | Path, *, check_hashes: HashCheck = "graphs", allow_unfinished: bool = False) -> Manifest:
    """Read an artifact's manifest after checking its files: existence and size of all, hashes of the graphs or of all.

    Args:
        path: The artifact's directory.
        check_hashes: Which files are hashed.
        allow_unfinished: Open the directory of an export that has not ended, or was killed.

    Raises:
        ArtifactError: no directory, no manifest, a file that is missing, cut, changed or outside the directory.
        ManifestError: the manifest itself cannot be read.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ArtifactError(
            f"{directory} is not a directory; make an artifact with `poolgraph export MODEL -o {directory}`"
        )
    if not is_artifact(directory):
        raise ArtifactError(f"{directory} has no {MANIFEST_FILE}, so it is not an artifact of poolgraph")
    if STAGING_MARK in directory.resolve().name and not allow_unfinished:
        raise ArtifactError(f"{directory} is what an export that was stopped left behind; remove it and export again")
    manifest = parse_manifest((directory / MANIFEST_FILE).read_bytes())
    _check_references(manifest)
    for name, record in manifest.files.items():
        _check_file(directory, name, record, with_hash=check_hashes == "all" or name.endswith(HASHED_ON_OPEN))
    return manifest


def _check_references(manifest: Manifest) -> None:
    if not manifest.variants:
        raise ArtifactError(
            f"{MANIFEST_FILE} lists no variants, so there is nothing to run; export the checkpoint again"
        )
    graphs = [graph.file for variant in manifest.variants for graph in variant.graphs.values()]
    graphs.append("tokenizer.json")
    if manifest.static_query is not None:
        graphs.append(manifest.static_query.file)
    for name in [*manifest.files, *graphs]:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise ArtifactError(f"the manifest names {name!r}, a path that leaves the artifact")
    for name in graphs:
        if name not in manifest.files:
            raise ArtifactError(f"the artifact needs {name!r}, which the manifest's list of files does not have")


def _check_file(directory: Path, name: str, record: FileRecord, *, with_hash: bool) -> None:
    file = directory / name
    cure = "export the checkpoint again or copy the artifact again"
    if not file.is_file():
        raise ArtifactError(f"{name} is missing from the artifact {directory}; {cure}")
    if not file.resolve().is_relative_to(directory.resolve()):
        raise ArtifactError(f"{name} is a link that leaves the artifact {directory}; {cure}")
    size = file.stat().st_size
    if size != record.size:
        raise ArtifactError(f"{name} has {size} bytes, the manifest says {record.size}; {cure}")
    if with_hash and hash_file(file) != record.sha256:
        raise ArtifactError(f"{name} does not have the SHA-256 that the manifest says; {cure}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(directory: Path) -> dict[str, FileRecord]:
    """Record size and hash of every file below ``directory`` but the manifest, by POSIX path, sorted."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)
    return {
        file.relative_to(directory).as_posix(): FileRecord(size=file.stat().st_size, sha256=hash_file(file))
        for file in files
    }


def save_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest into ``directory`` in one step: a reader sees the old one or the new one."""
    partial = directory / (MANIFEST_FILE + ".partial")
    with partial.open("wb") as file:
        file.write(encode_manifest(manifest))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / MANIFEST_FILE)


@contextlib.contextmanager
def staged_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a fresh directory beside ``target`` that takes its name when the block ends without an error.

    Whatever ends the process before that leaves ``target`` as it was. Only while an old artifact is being replaced is
    there a moment between two renames without one; the old one then lies beside it.

    Raises:
        ArtifactError: ``target`` exists and is not an artifact, or is one and ``overwrite`` is False.
    """
    target = target.absolute()
    _check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}{STAGING_MARK}", dir=target.parent))
    except OSError as error:
        raise ArtifactError(f"{target.parent} cannot take an artifact: {error.strerror or error}") from error
    try:
        yield staging
        staging.chmod(0o755)
        _check_target(target, overwrite=overwrite)  # again: another export may have ended in the meantime
        _replace_directory(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.is_symlink() and not target.exists():
        raise ArtifactError(f"{target} is a link to nothing; choose another output directory")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not is_artifact(target):
        raise ArtifactError(f"{target} exists and is not an artifact; choose another output directory")
    if not overwrite:
        raise ArtifactError(f"{target} already holds an artifact; pass --force (overwrite=True) to replace it")


def _replace_directory(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.retired-", dir=target.parent))
    target.rename(retired / "old")
    try:
        staging.rename(target)
    except OSError:
        (retired / "old").rename(target)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)
