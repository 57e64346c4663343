"""From a path and wishes to open sessions: the artifact's directory, its variant, a provider that really loads."""

from __future__ import annotations

import warnings
from dataclasses import replace
from numbers import Integral
from pathlib import Path

from poolgraph.errors import InputError, ProviderError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.model_paths import check_model_path, is_checkpoint_dir, is_local_path
from poolgraph.runtime.native_library import available_operators
from poolgraph.runtime.providers import CPU_PROVIDER, Choice, Machine, Wish, choose_variant
from poolgraph.runtime.session import SessionPool, available_providers


def resolve_directory(path: str | Path) -> Path:
    """Return the artifact's directory; a checkpoint folder or hub id is exported into the cache first.

    A directory that is neither, and a file, are returned as they are, for opening to refuse.

    Raises:
        InputError: not a str or Path, or a local path where no folder is.
        ArtifactError: an artifact that lost its manifest.
    """
    directory = check_model_path(path)
    if is_artifact(directory) or not _may_be_checkpoint(directory):
        return directory
    from poolgraph.runtime.cache import resolve_artifact

    return resolve_artifact(path)


def check_count(name: str, number: object) -> None:
    """Check an argument that counts something.

    Raises:
        InputError: not an int, or below 1.
    """
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise InputError(f"{name} must be an int, not {type(number).__name__}", parameter=name, value=number)
    if number < 1:
        raise InputError(f"{name} must be at least 1, got {number}", parameter=name, value=number)


def check_name(name: str, value: object) -> None:
    """Check an argument that names something, or is None.

    Raises:
        InputError: neither a str nor None.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} must be a str or None, not {type(value).__name__}", parameter=name, value=value)


def this_machine(cpu: CpuInfo) -> Machine:
    """Return what this machine offers to a choice of variants."""
    return Machine(providers=available_providers(), cpu_features=cpu.features, operators=available_operators())


def open_sessions(directory: Path, manifest: Manifest, wish: Wish, cpu: CpuInfo) -> SessionPool:
    """Choose a variant and a provider; one that turns out not to load is passed over unless it was asked for.

    Raises:
        ProviderError: the provider asked for does not load.
        ArtifactError: the artifact has no such variant.
    """
    machine = this_machine(cpu)
    failure: ProviderError | None = None
    while True:
        choice = choose_variant(manifest, wish, machine)
        sessions = SessionPool(directory=directory, variant=choice.variant, provider=choice.provider)
        try:
            _try_provider(sessions, cpu.num_cores)
        except ProviderError as error:
            if wish.provider is not None and not wish.fallback:
                raise
            failure = error
            machine = replace(machine, providers=tuple(name for name in machine.providers if name != choice.provider))
            continue
        _warn_of_fallback(choice, failure if wish.fallback else None)
        return sessions


def _try_provider(sessions: SessionPool, threads: int) -> None:
    """Open one session where the provider may fail to load; the CPU provider always does."""
    if sessions.provider != CPU_PROVIDER:
        sessions.session(next(iter(sessions.variant.graphs)), threads)


def _warn_of_fallback(choice: Choice, failure: ProviderError | None) -> None:
    message = choice.warning or (str(failure) if failure else None)
    if message is not None:
        warnings.warn(f"{message}. Running on {choice.provider} instead.", UserWarning, stacklevel=4)


def _may_be_checkpoint(path: Path) -> bool:
    return is_checkpoint_dir(path) if path.is_dir() else not (path.exists() or is_local_path(path))
