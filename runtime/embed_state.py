"""How far the work on an output file is, and whether it may be continued."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from poolgraph.errors import InputError
from poolgraph.runtime.text_files import STANDARD_INPUT, read_texts

if TYPE_CHECKING:
    from poolgraph.graphs.manifest import Manifest
    from poolgraph.runtime.model import PoolingModel

STATE_VERSION: Final = 1

_START_OVER: Final = "give --force to start over"


class EmbedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How texts become vectors; the keywords of ``PoolingModel.embed``."""

    prompt_name: str | None = None
    prompt: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    truncate: bool = False


class TextSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the texts are: a path or ``-``, and how to read it."""

    path: str
    field: str | None = None
    file_format: str | None = None

    def read(self) -> Iterator[str]:
        """Yield the texts."""
        return read_texts(self.path, field=self.field, file_format=self.file_format)


class EmbedJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that decides the bytes of the output; work is continued only when every part is equal."""

    artifact: str
    variant: str
    options: EmbedOptions
    field: str | None
    file_format: str | None
    input_name: str
    input_bytes: int | None
    input_modified_ns: int | None
    chunk_size: int


class EmbedState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What OUT.state.json says: the first ``size_bytes`` of OUT.partial hold ``num_rows`` vectors of this job."""

    version: int = STATE_VERSION
    num_rows: int
    size_bytes: int
    job: EmbedJob


def partial_path(output: Path) -> Path:
    """Return the working file of ``output``."""
    return output.with_name(output.name + ".partial")


def state_path(output: Path) -> Path:
    """Return the file that says how far the working file of ``output`` is good."""
    return output.with_name(output.name + ".state.json")


def describe_job(model: PoolingModel, source: TextSource, options: EmbedOptions, chunk_size: int) -> EmbedJob:
    """Return what the output depends on: the artifact's answers, the options, and the input's name, size and time."""
    status = _stat_input(source.path)
    return EmbedJob(
        artifact=hash_answers(model.manifest),
        variant=model.variant.name,
        options=options,
        field=source.field,
        file_format=source.file_format,
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
    files = {name: record for name, record in manifest.files.items() if not name.endswith(".md")}
    parts = (files, manifest.pooler, manifest.limits, manifest.tokenization, manifest.prompts)
    return hashlib.sha256(msgspec.json.encode((*parts, manifest.default_prompt_name), order="sorted")).hexdigest()


def choose_start(output: Path, job: EmbedJob, *, resume: bool, overwrite: bool) -> EmbedState:
    """Return where to begin: at the recorded state of an interrupted run, or at nothing."""
    fresh = EmbedState(num_rows=0, size_bytes=0, job=job)
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


def check_same_job(output: Path, before: EmbedJob, now: EmbedJob) -> None:
    """Raise InputError naming each part in which the interrupted job differs from this one."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(now)
    old.update(old.pop("options"))
    new.update(new.pop("options"))
    differences = [f"{name} was {old[name]!r} and is {new[name]!r}" for name in new if old[name] != new[name]]
    if differences:
        raise InputError(f"{output} cannot be resumed: {'; '.join(differences)}. Undo that, or {_START_OVER}.")


def _load_state(output: Path) -> EmbedState:
    path = state_path(output)
    try:
        state = msgspec.json.decode(path.read_bytes(), type=EmbedState)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not readable: {error}; {_START_OVER}") from error
    if state.version != STATE_VERSION:
        raise InputError(f"{path} has version {state.version}; this poolgraph reads {STATE_VERSION}; {_START_OVER}")
    return state


def save_state(output: Path, state: EmbedState) -> None:
    """Replace OUT.state.json in one step."""
    path = state_path(output)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(state) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
