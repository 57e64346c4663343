"""Artifacts made on demand: a checkpoint folder or hub id is exported once, by a child process, into the cache.

The child needs torch; this process does not. The cache is ``$POOLGRAPH_CACHE``, else ``poolgraph`` in the user's folder
for caches::

    artifacts/<name>-<key>/     one artifact a key
    artifacts/<name>-<key>.lock held while it is being made
    hashes.json                 content hashes of large files, by path, size and time of change
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from filelock import FileLock, Timeout

from poolgraph import __version__
from poolgraph.errors import ExportError, InputError, VerificationError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.graphs.manifest import MANIFEST_FILE
from poolgraph.runtime.checkpoint_hash import hash_checkpoint
from poolgraph.runtime.model_paths import CHECKPOINT_FILES, check_model_path, is_checkpoint_dir

OnLine: TypeAlias = Callable[[str], None]
"""Receives each line that the export writes to standard error: its stages, warnings and errors."""

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_ERROR_LINES: Final = 20
_ERROR_PREFIX: Final = "poolgraph: error: "
"""Begins what the command line says of an error; the caller says it again."""

_VERIFICATION_FAILED: Final = 3
_MISSING_EXTRA: Final = "No module named"
_EXTRA: Final = "poolgraph[export]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """One export: ``source`` is a checkpoint folder or a hub id, ``output`` the directory to be made."""

    source: str
    revision: str | None
    options: tuple[tuple[str, str], ...]
    output: Path

    def command(self) -> list[str]:
        """Build the command line of the child process; an option of value "true" is a bare flag."""
        command = [sys.executable, "-m", "poolgraph.cli", "export", self.source, "-o", str(self.output)]
        if self.revision is not None:
            command += ["--revision", self.revision]
        for name, value in self.options:
            flag = f"--{name.replace('_', '-')}"
            command += [flag] if value == "true" else [flag, value]
        return command


RunExport: TypeAlias = Callable[[ExportRequest, OnLine | None], None]


def cache_dir() -> Path:
    """Return the cache's folder; it need not exist."""
    if given := os.environ.get("POOLGRAPH_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "poolgraph"


def resolve_artifact(
    model: str | Path,
    *,
    revision: str | None = None,
    options: Mapping[str, str] | None = None,
    on_line: OnLine | None = None,
    run_export: RunExport | None = None,
) -> Path:
    """Return the artifact directory of a model, exporting it into the cache where that was not done before.

    Args:
        model: An artifact directory, returned as it is; a checkpoint folder; or a hub id. An id without a revision
            stays at what was downloaded first.
        revision: Branch, tag or commit of a hub id.
        options: Options of ``poolgraph export`` by name, such as ``{"task": "embed"}``; "true" makes a bare flag.
        on_line: Receives each line that the export writes to standard error.
        run_export: Makes the artifact; the default runs ``poolgraph export`` in a child process.

    Raises:
        InputError: neither an artifact, nor a checkpoint folder, nor the form of a hub id.
        ArtifactError: an artifact that lost its manifest.
        ExportError: the export failed; VerificationError when its answers were wrong.
    """
    path = check_model_path(model)
    if model != "" and is_artifact(path):
        return path
    request = plan_export(model, revision=revision, options=options)
    if is_artifact(request.output):
        return request.output
    request.output.parent.mkdir(parents=True, exist_ok=True)
    lock = _wait_for_lock(request.output.with_name(f"{request.output.name}.lock"), on_line)
    try:
        if not is_artifact(request.output):
            (run_export or run_export_process)(request, on_line)
    finally:
        lock.release()
    if not is_artifact(request.output):
        raise ExportError(f"the export of {request.source} ended without an artifact in {request.output}")
    return request.output


def plan_export(
    model: str | Path, *, revision: str | None = None, options: Mapping[str, str] | None = None
) -> ExportRequest:
    """Decide where in the cache the artifact of a checkpoint folder or hub id lives.

    Raises:
        InputError: neither a checkpoint folder nor the form of a hub id.
    """
    folder = Path(model)
    chosen = tuple(sorted((options or {}).items()))
    if model != "" and folder.is_dir():
        source, identity = str(folder.resolve()), _checkpoint_hash(folder)
    else:
        source = identity = _check_hub_id(model)
    key = sha256(msgspec.json.encode([identity, revision, chosen, __version__])).hexdigest()
    name = re.sub(r"[^\w.-]+", "--", source if source == identity else Path(source).name, flags=re.ASCII)
    return ExportRequest(
        source=source, revision=revision, options=chosen, output=cache_dir() / "artifacts" / f"{name}-{key[:32]}"
    )


def _checkpoint_hash(folder: Path) -> str:
    if not is_checkpoint_dir(folder):
        raise InputError(
            f"{folder} is neither an artifact (no {MANIFEST_FILE}) "
            f"nor a checkpoint (no {' or '.join(CHECKPOINT_FILES)})",
            parameter="model",
            value=str(folder),
        )
    return hash_checkpoint(folder, memory_file=cache_dir() / "hashes.json")


def _check_hub_id(model: str | Path) -> str:
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model) or ".." in model or Path(model).exists():
        raise InputError(
            f"{str(model)!r} is neither a folder (an artifact or a checkpoint) nor a hub id such as 'owner/name'",
            parameter="model",
            value=str(model),
        )
    return model


def _wait_for_lock(path: Path, on_line: OnLine | None) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_line is not None:
            on_line(f"another process is exporting this model; waiting for it ({path})")
        lock.acquire()
    return lock


def run_export_process(request: ExportRequest, on_line: OnLine | None = None) -> None:
    """Run ``poolgraph export`` in a child process; it dies with an interrupted caller.

    Raises:
        ExportError: the child failed; VerificationError when it ended with the code for that.
    """
    run_export_command(request.command(), request.source, on_line)


def run_export_command(command: list[str], source: str, on_line: OnLine | None = None) -> None:
    """Run an export's command line, hand on its lines and turn its failure into an error with the last of them.

    What it says of an error is in the exception alone, so that it is not told twice.

    Raises:
        ExportError: the exit code is not 0; VerificationError when it is the code for a failed verification.
    """
    errors: deque[str] = deque(maxlen=_ERROR_LINES)
    has_failed = False
    with subprocess.Popen(  # noqa: S603 - the command is ours, and no shell reads it
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                if line.startswith(_ERROR_PREFIX):
                    errors.clear()
                    has_failed = True
                errors.append(line.removeprefix(_ERROR_PREFIX).rstrip("\n"))
                if on_line is not None and not has_failed:
                    on_line(errors[-1])
            code = child.wait()
        finally:
            child.kill()
    if code != 0:
        raise _export_error(code, "\n".join(errors).strip(), source)


def _export_error(code: int, output: str, source: str) -> ExportError:
    kind = VerificationError if code == _VERIFICATION_FAILED else ExportError
    message = f"exporting {source} failed with exit code {code}: {output or 'it printed no error'}"
    if _MISSING_EXTRA in output and _EXTRA not in output:
        message += f'\nExporting needs torch and transformers: pip install "{_EXTRA}"'
    return kind(message)
