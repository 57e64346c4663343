"""From a path and wishes to open sessions: the artifact's directory, its variant, a provider that really loads."""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

from poolgraph.errors import ArtifactError, InputError, ProviderError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.bound_inputs import BOUND_LAYOUTS
from poolgraph.runtime.bucket_file import load_buckets
from poolgraph.runtime.bucket_planner import MAX_BUCKET_TOKENS, BucketBudget
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.model_paths import check_model_path, is_checkpoint_dir, is_local_path
from poolgraph.runtime.native_library import available_operators
from poolgraph.runtime.provider_options import BOUND_DEVICES, BOUND_THREADS, TENSORRT_FOLDER, ProviderSettings
from poolgraph.runtime.providers import (
    CPU_PROVIDER,
    OTHER_CURES,
    TENSORRT_PROVIDER,
    Choice,
    Machine,
    Wish,
    choose_variant,
)
from poolgraph.runtime.session import SessionPool, available_providers, provider_loads


def resolve_directory(path: str | Path, wish: Wish | None = None) -> Path:
    """Return the artifact's directory; a checkpoint folder or hub id is exported into the cache first.

    It is for the provider, precision and variant that are wished for, else for the best provider that loads.

    A directory that is neither, and a file, are returned as they are, for opening to refuse.

    Raises:
        InputError: not a str or Path, a local path where no folder is, or a precision or variant that no export makes.
        ArtifactError: an artifact that lost its manifest.
        ProviderError: a checkpoint for a provider that does not load here.
    """
    directory = check_model_path(path)
    if is_artifact(directory) or not _may_be_checkpoint(directory):
        return directory
    from poolgraph.runtime.cache import resolve_artifact
    from poolgraph.runtime.export_precision import plan_precision

    return resolve_artifact(path, options=plan_precision(wish or Wish()))


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
    """Return what this machine offers to a choice of variants, with all providers that ONNX Runtime was built with."""
    return Machine(providers=available_providers(), cpu_features=cpu.features, operators=available_operators())


def working_machine(cpu: CpuInfo) -> Machine:
    """Return what this machine offers, with the providers that really load."""
    machine = this_machine(cpu)
    return replace(machine, providers=tuple(filter(provider_loads, machine.providers)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketWish:
    """What the caller asked of providers that run in buckets.

    Attributes:
        buckets: A file, the buckets themselves, or None for those stored beside the artifact, else planned ones.
        max_batch_tokens: Tokens of the largest planned bucket; None for the default.
        gpu_mem_limit: Bytes that each session may take of the device; None for all there are.
        cuda_graphs: Whether each bucket gets a CUDA graph.
    """

    buckets: str | Path | Sequence[Bucket] | None = None
    max_batch_tokens: int | None = None
    gpu_mem_limit: int | None = None
    cuda_graphs: bool = True


def open_sessions(
    directory: Path, manifest: Manifest, wish: Wish, cpu: CpuInfo, bucket_wish: BucketWish | None = None
) -> SessionPool:
    """Choose a variant and a provider; one that turns out not to load is passed over unless it was asked for.

    Raises:
        ProviderError: the provider asked for does not load.
        ArtifactError: the artifact has no such variant.
        InputError: buckets that the variant cannot run in.
    """
    machine = this_machine(cpu)
    failure: ProviderError | None = None
    warning: str | None = None  # the first, which is of what was asked for
    while True:
        try:
            choice = choose_variant(manifest, wish, machine)
        except (ProviderError, ArtifactError):
            if failure is None:
                raise
            # Why the provider of what was asked for does not load; no other provider has it.
            raise ProviderError(_reason(failure)) from failure
        warning = warning or choice.warning
        settings = resolve_settings(directory, manifest, choice, wish, bucket_wish or BucketWish())
        sessions = SessionPool(directory=directory, variant=choice.variant, provider=choice.provider, settings=settings)
        try:
            _try_provider(sessions, cpu.num_cores)
        except ProviderError as error:
            _remove_unused(settings.cache_folder)
            if wish.provider is not None and not wish.fallback:
                raise
            failure = failure or error
            warning = warning or _reason(failure) if wish.fallback else None
            machine = replace(machine, providers=tuple(name for name in machine.providers if name != choice.provider))
            continue
        if warning is not None:
            warnings.warn(f"{warning}. Running on {choice.provider} instead.", UserWarning, stacklevel=3)
        return sessions


def resolve_settings(
    directory: Path, manifest: Manifest, choice: Choice, wish: Wish, bucket_wish: BucketWish
) -> ProviderSettings:
    """Decide what the chosen provider is told; only those that run in buckets are told anything."""
    layout = choice.variant.layout
    if choice.provider not in BOUND_DEVICES or layout not in BOUND_LAYOUTS:
        return ProviderSettings()
    longest = manifest.limits.max_model_len
    tokens = bucket_wish.max_batch_tokens
    budget = BucketBudget(max_model_len=longest, max_batch_tokens=MAX_BUCKET_TOKENS if tokens is None else tokens)
    is_tensorrt = choice.provider == TENSORRT_PROVIDER
    return ProviderSettings(
        buckets=load_buckets(bucket_wish.buckets, directory=directory, layout=layout, budget=budget),
        uses_graphs=bucket_wish.cuda_graphs and not is_tensorrt,
        gpu_mem_limit=bucket_wish.gpu_mem_limit,
        cache_folder=tensorrt_folder(directory, manifest.source.content_hash) if is_tensorrt else None,
        half=wish.precision != "fp32",
    )


def tensorrt_folder(directory: Path, content_hash: str) -> Path:
    """Return the folder, made now, of TensorRT's engines: beside the artifact, in the cache where that is read-only.

    Raises:
        InputError: neither can be written to.
    """
    from poolgraph.runtime.cache import cache_dir

    name = re.sub(r"[^\w.-]", "_", content_hash)
    for folder in (directory / TENSORRT_FOLDER, cache_dir() / TENSORRT_FOLDER / name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise InputError(
        f"neither {directory} nor {cache_dir()} can be written to, and TensorRT keeps its engines there; copy the "
        "artifact to where it is writable"
    )


def _remove_unused(cache_folder: Path | None) -> None:
    """Remove a folder of engines that nothing has been put into."""
    if cache_folder is not None:
        with contextlib.suppress(OSError):  # engines of earlier loads are in it
            cache_folder.rmdir()


def _try_provider(sessions: SessionPool, threads: int) -> None:
    """Open one session where the provider may fail to load; the CPU provider always does."""
    if sessions.provider != CPU_PROVIDER:
        threads = BOUND_THREADS if sessions.provider in BOUND_DEVICES else threads
        sessions.session(next(iter(sessions.variant.graphs)), threads)


def _reason(failure: ProviderError) -> str:
    """Return why a provider does not load, without the cures that are of no use to those who fall back."""
    return str(failure).removesuffix(OTHER_CURES)


def _may_be_checkpoint(path: Path) -> bool:
    return is_checkpoint_dir(path) if path.is_dir() else not (path.exists() or is_local_path(path))
