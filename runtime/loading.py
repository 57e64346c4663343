"""From a path and wishes to open sessions: the artifact's directory, its variant, a provider that really loads."""

from __future__ import annotations

import warnings
from pathlib import Path

from poolgraph.errors import ProviderError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.providers import CPU_PROVIDER, Choice, Wish, choose_variant
from poolgraph.runtime.session import SessionPool, available_providers


def resolve_directory(path: str | Path) -> Path:
    """Return the artifact's directory; a checkpoint folder or hub id is exported into the cache first.

    A directory that is neither, and a path that cannot be a hub id, are returned as they are, for opening to refuse.
    """
    directory = Path(path)
    if is_artifact(directory) or not _may_be_checkpoint(directory):
        return directory
    from poolgraph.runtime.cache import resolve_artifact

    return resolve_artifact(path)


def open_sessions(directory: Path, manifest: Manifest, wish: Wish, cpu: CpuInfo) -> SessionPool:
    """Choose a variant and a provider; one that turns out not to load is passed over unless it was asked for.

    Raises:
        ProviderError: the provider asked for does not load.
        ArtifactError: the artifact has no such variant.
    """
    available = list(available_providers())
    failure: ProviderError | None = None
    while True:
        choice = choose_variant(manifest, wish, available=available, cpu_features=cpu.features)
        sessions = SessionPool(directory=directory, variant=choice.variant, provider=choice.provider)
        try:
            _try_provider(sessions, cpu.num_cores)
        except ProviderError as error:
            if wish.provider is not None and not wish.fallback:
                raise
            failure = error
            available.remove(choice.provider)
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
    if path.is_dir():
        return (path / "config.json").is_file() or (path / "modules.json").is_file()
    return not path.exists() and not path.is_absolute() and len(path.parts) <= 2 and path.parts[:1] != ("..",)
