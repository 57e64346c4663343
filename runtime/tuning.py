"""``tuning.json`` beside an artifact: the plans that ``poolgraph bench --tune`` found, one a machine and variant.

The file is no part of the artifact: its manifest does not list it, and without it, or with one that cannot be read, the
artifact runs by the rules of ``threads.py`` and ``planner.py``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.manifest import UNREADABLE, Positive
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.planner import MAX_BATCH_TOKENS

TUNING_FILE: Final = "tuning.json"

LARGEST_BYTES: Final = 1 << 20
"""Far more than the entries of all machines that one artifact will see."""

Speed = Annotated[float, msgspec.Meta(gt=0.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How calls are run.

    Attributes:
        threads: Threads of a run where there are batches enough to fill the cores with such runs; None, and calls of
            fewer batches, keep to the rule of ``choose_parallelism``.
        max_batch_tokens: Token budget of a batch.
    """

    threads: int | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS


class TuningEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found for one variant on one machine; it holds where ``cpu``, ``cores`` and ``variant`` are equal.

    Attributes:
        cpu: The processor's name for itself.
        cores: Cores that the process could use.
        variant: The variant's name.
        threads: As in ``Tuning``.
        max_batch_tokens: As in ``Tuning``.
        workload: What was measured.
        tokens_per_s: Speed with this plan, the median of ``rounds`` processes.
        default_tokens_per_s: Speed with the default plan, measured in turn with it.
        rounds: Processes a plan.
        poolgraph_version: The version that measured.
        date: The day, UTC.
    """

    cpu: str
    cores: Positive
    variant: str
    threads: Positive | None
    max_batch_tokens: Positive
    workload: str
    tokens_per_s: Speed
    default_tokens_per_s: Speed
    rounds: Positive
    poolgraph_version: str
    date: str

    @property
    def key(self) -> tuple[str, int, str]:
        """What the entry is for."""
        return self.cpu, self.cores, self.variant

    @property
    def tuning(self) -> Tuning:
        """What it says."""
        return Tuning(threads=self.threads, max_batch_tokens=self.max_batch_tokens)


class _TuningFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    format_version: Literal[1]
    entries: tuple[TuningEntry, ...]


def read_tuning(directory: Path) -> tuple[TuningEntry, ...]:
    """Read the entries beside an artifact; none where there is no file.

    Raises:
        ArtifactError: a file that is no tuning file, or a link that leaves the artifact.
    """
    file = directory / TUNING_FILE
    if not file.exists() and not file.is_symlink():
        return ()
    try:
        return _parse(file, directory)
    except (*UNREADABLE, OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} cannot be used: {error}; remove it, or tune again with `poolgraph bench {directory} --tune`"
        ) from error


def _parse(file: Path, directory: Path) -> tuple[TuningEntry, ...]:
    if not file.resolve().is_relative_to(directory.resolve()):
        raise ValueError("it is a link that leaves the artifact")
    if file.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES} bytes")
    entries = msgspec.json.decode(file.read_bytes(), type=_TuningFile).entries
    for entry in entries:
        if entry.threads is not None and entry.threads > entry.cores:
            raise ValueError(f"an entry has {entry.threads} threads on {entry.cores} cores")
    return entries


def find_entry(entries: Iterable[TuningEntry], cpu: CpuInfo, variant: str) -> TuningEntry | None:
    """Return the entry of this processor, number of cores and variant; None where there is none."""
    return next((entry for entry in entries if entry.key == (cpu.model, cpu.num_cores, variant)), None)


def load_tuning(directory: Path, cpu: CpuInfo, variant: str) -> Tuning:
    """Return the stored plan of a variant on this machine, else the default; warn of a file that cannot be used."""
    try:
        entry = find_entry(read_tuning(directory), cpu, variant)
    except ArtifactError as error:
        warnings.warn(f"{error}. The default plan is used.", UserWarning, stacklevel=4)
        return Tuning()
    return Tuning() if entry is None else entry.tuning


def check_storable(directory: Path) -> None:
    """Check that ``store_entry`` will be able to write, before anything is measured.

    Raises:
        InputError: the directory cannot be written to.
        ArtifactError: the file that is there is no tuning file.
    """
    read_tuning(directory)
    with _writing(directory), tempfile.TemporaryFile(dir=directory):
        pass


def store_entry(directory: Path, entry: TuningEntry) -> None:
    """Write an entry beside the artifact, in place of an older one of the same machine and variant.

    Raises:
        InputError: the directory cannot be written to.
        ArtifactError: the file that is there is no tuning file.
    """
    kept = [other for other in read_tuning(directory) if other.key != entry.key]
    entries = tuple(sorted([*kept, entry], key=lambda other: other.key))
    data = msgspec.json.format(msgspec.json.encode(_TuningFile(format_version=1, entries=entries)), indent=2) + b"\n"
    partial = directory / (TUNING_FILE + ".partial")
    with _writing(directory):
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / TUNING_FILE)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{directory} cannot be written to ({error.strerror or error}), and the plan is stored there as "
            f"{TUNING_FILE}; tune a copy of the artifact that is writable"
        ) from error
