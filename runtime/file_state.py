"""How far the work on an output file is, and whether it may be continued."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from poolgraph.errors import InputError
from poolgraph.runtime.file_readers import STANDARD_INPUT
from poolgraph.runtime.file_sources import FileSource

if TYPE_CHECKING:
    from poolgraph.graphs.manifest import Manifest
    from poolgraph.runtime.model import PoolingModel

STATE_VERSION: Final = 2

_START_OVER: Final = "give --force to start over"


class FileJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that decides the bytes of the output; work is continued only when every part is equal."""

    artifact: str
    variant: str
    task: str
    options: dict[str, Any]
    fields: tuple[str | None, ...]
    file_format: str | None
    query: str | None
    input_name: str
    input_bytes: int | None
    input_modified_ns: int | None
    chunk_size: int


class FileState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What OUT.state.json says: the first ``size_bytes`` of OUT.partial hold ``num_rows`` answers of this job."""

    version: int = STATE_VERSION
    num_rows: int
    size_bytes: int
    job: FileJob


def partial_path(output: Path) -> Path:
    """Return the working file of ``output``."""
    return output.with_name(output.name + ".partial")


def state_path(output: Path) -> Path:
    """Return the file that says how far the working file of ``output`` is good."""
    return output.with_name(output.name + ".state.json")


def describe_job(
    model: PoolingModel, source: FileSource, task: str, options: Mapping[str, Any], chunk_size: int
) -> FileJob:
    """Return what the output depends on: the artifact's answers, the options, and the input's name, size and time."""
    status = _stat_input(source.path)
    return FileJob(
        artifact=hash_answers(model.manifest),
        variant=model.variant.name,
        task=task,
        options=msgspec.json.decode(msgspec.json.encode(options)),
        fields=tuple(field.name for field in source.fields),
        file_format=source.file_format,
        query=source.query,
        input_name=Path(source.path).name,
        input_bytes=status.st_size if status else None,
        input_modified_ns=status.st_mtime_ns if status else None,
        chunk_size=chunk_size,
    )


def _stat_input(path: str) -> os.stat_result | None:
    if path == STANDARD_INPUT:
        return None
    try:
        return Path(path).stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def hash_answers(manifest: Manifest) -> str:
    """Hash what an artifact's answers depend on: not its time stamps, its report or its card."""
    changing = ("poolgraph_version", "created", "report", "source")
    parts = msgspec.structs.asdict(manifest)
    parts["files"] = {name: record for name, record in manifest.files.items() if not name.endswith(".md")}
    lasting = {name: value for name, value in parts.items() if name not in changing}
    return hashlib.sha256(msgspec.json.encode(lasting, order="sorted")).hexdigest()


def choose_start(output: Path, job: FileJob, *, resume: bool, overwrite: bool) -> FileState:
    """Return where to begin: at the recorded state of an interrupted run, or at nothing.

    Raises:
        InputError: it was interrupted and ``resume`` is not set, or it cannot be continued.
    """
    fresh = FileState(num_rows=0, size_bytes=0, job=job)
    if overwrite or not (partial_path(output).exists() and state_path(output).exists()):
        return fresh
    if not resume:
        raise InputError(f"{output} was begun and interrupted; give --resume to continue, or --force to start over")
    if job.input_bytes is None:
        raise InputError(
            f"{output}: texts from standard input cannot be resumed; {_START_OVER}, or put the texts in a file"
        )
    state = _load_state(output)
    check_same_job(output, state.job, job)
    if partial_path(output).stat().st_size < state.size_bytes:
        raise InputError(f"{partial_path(output)} is shorter than recorded; {_START_OVER}")
    return state


def check_same_job(output: Path, before: FileJob, now: FileJob) -> None:
    """Raise InputError naming each part in which the interrupted job differs from this one."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(now)
    old.update(old.pop("options"))
    new.update(new.pop("options"))
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    differences = [f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names]
    if differences:
        raise InputError(f"{output} cannot be resumed: {'; '.join(differences)}. Undo that, or {_START_OVER}.")


def _load_state(output: Path) -> FileState:
    path = state_path(output)
    try:
        state = msgspec.json.decode(path.read_bytes(), type=FileState)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not readable: {error}; {_START_OVER}") from error
    if state.version != STATE_VERSION:
        raise InputError(f"{path} has version {state.version}; this poolgraph reads {STATE_VERSION}; {_START_OVER}")
    return state


def save_state(output: Path, state: FileState) -> None:
    """Replace OUT.state.json in one step."""
    path = state_path(output)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(state) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
