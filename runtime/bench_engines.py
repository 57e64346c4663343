"""The engines of a benchmark: the artifact's own variants, and those of others, a row each; loaded in a child."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.manifest import Manifest, Variant
from poolgraph.runtime.bench_tasks import BENCH_TASKS, Answers
from poolgraph.runtime.providers import PORTABLE, Machine
from poolgraph.runtime.tuning import Tuning

if TYPE_CHECKING:
    from poolgraph.runtime.bench_workloads import Workload

TORCH: Final = "torch"
FLOAT32: Final = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What an engine is loaded for.

    Attributes:
        directory: The artifact.
        task: A key of ``BENCH_TASKS``.
        checkpoint: Folder of the checkpoint that it was made from; None where no engine needs it.
        tuning: Plan of the artifact's own variants; None for the stored one or the default.
        threads: Threads of a run of theirs, as a user fixes them.
    """

    directory: Path
    task: str
    checkpoint: Path | None = None
    tuning: Tuning | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loaded engine.

    Attributes:
        label: What it is, for people.
        ask: Answers a workload, in batches of the size given where it leaves that to its users.
        batch_sizes: Sizes that its users choose between: each is measured and the faster one counts.
    """

    label: str
    ask: Callable[[Workload, int | None], Answers]
    batch_sizes: tuple[int, ...] = ()


class Adapter(Protocol):
    """What the module of an engine defines; heavy imports belong inside ``load``, whose time is reported."""

    def load(self, request: EngineRequest, **options: Any) -> Engine:
        """Return the engine, ready to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An engine that ``--against`` names.

    Attributes:
        module: The module of its adapter.
        options: What its ``load`` is given.
        packages: What must be installed.
        needs_checkpoint: Whether it runs the checkpoint; else the artifact's portable graph.
    """

    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    needs_checkpoint: bool = False


def _torch(dtype: str) -> Peer:
    return Peer(
        module="poolgraph.export.bench_torch",
        options={"dtype": dtype},
        packages=(TORCH, "transformers", "sentence_transformers"),
        needs_checkpoint=True,
    )


def _openvino(precision: str) -> Peer:
    return Peer(module="poolgraph.runtime.bench_openvino", options={"precision": precision}, packages=("openvino",))


PEERS: Final[Mapping[str, Peer]] = MappingProxyType(
    {
        TORCH: _torch("float32"),
        "torch-bf16": _torch("bfloat16"),
        "openvino": _openvino("f32"),
        "openvino-bf16": _openvino("bf16"),
        PORTABLE: Peer(module="poolgraph.runtime.bench_engines"),
    }
)
"""Engines beside the artifact's own variants, by name."""


def choose_variants(manifest: Manifest, precisions: Sequence[str] | None, machine: Machine) -> list[Variant]:
    """Return the variants that run here; portable ones only of a precision that has no other.

    Raises:
        InputError: the artifact has no variant of a precision asked for.
        ArtifactError: none runs here.
    """
    known = list(dict.fromkeys(variant.precision for variant in manifest.variants))
    unknown = [precision for precision in precisions or () if precision not in known]
    if unknown:
        raise InputError(
            f"the artifact has no variant in {', '.join(unknown)}; it has {', '.join(known)}", parameter="precision"
        )
    runnable = [
        variant
        for variant in manifest.variants
        if set(variant.providers) & set(machine.providers) and machine.runs(variant)
    ]
    chosen = [
        variant
        for precision in precisions or known
        for variant in _own_or_portable([v for v in runnable if v.precision == precision])
    ]
    if not chosen:
        raise ArtifactError(f"none of the variants {[v.name for v in manifest.variants]} runs on this machine")
    return chosen


def _own_or_portable(variants: Sequence[Variant]) -> Sequence[Variant]:
    return [variant for variant in variants if variant.target != PORTABLE] or variants


def choose_reference(engines: Sequence[str], manifest: Manifest) -> str:
    """Return the engine whose answers are the reference: torch if it is asked for, else float32 in the artifact.

    The variant need not be among the engines. Without any in float32 it is the first engine.
    """
    if TORCH in engines:
        return TORCH
    in_float32 = [variant for variant in manifest.variants if variant.precision == FLOAT32]
    own = [variant.name for variant in _own_or_portable(in_float32)]
    return own[0] if own else engines[0]


def check_peers(names: Sequence[str]) -> None:
    """Check that engines are known and their packages installed.

    Raises:
        InputError: an unknown name.
        ModuleNotFoundError: a package is not installed; its ``name`` is the package's.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise InputError(f"unknown {', '.join(unknown)}; there are {', '.join(PEERS)}", parameter="against")
    for package in (package for name in names for package in PEERS[name].packages):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def load_engine(name: str, request: EngineRequest) -> Engine:
    """Load an engine by the name of a variant or of a peer."""
    if name not in PEERS:
        return load_variant(request, name)
    adapter: Adapter = import_module(PEERS[name].module)
    return adapter.load(request, **PEERS[name].options)


def load(request: EngineRequest) -> Engine:
    """Load the portable graph on ONNX Runtime."""
    from poolgraph.graphs.artifact import open_artifact

    return load_variant(request, find_portable(open_artifact(request.directory)).name)


def load_variant(request: EngineRequest, name: str) -> Engine:
    """Load one variant as its users do."""
    from poolgraph.runtime.model import PoolingModel

    model = PoolingModel.load(request.directory, variant=name, threads=request.threads, tuning=request.tuning)
    task = BENCH_TASKS[request.task]
    return Engine(label=f"poolgraph {name}", ask=lambda workload, _size: task.ask(model, workload))


def find_portable(manifest: Manifest) -> Variant:
    """Return the portable variant, in float32 where there is one.

    Raises:
        ArtifactError: there is none.
    """
    portable = [variant for variant in manifest.variants if variant.target == PORTABLE]
    if not portable:
        raise ArtifactError(f"the artifact has no portable graph, only {[v.name for v in manifest.variants]}")
    return next((variant for variant in portable if variant.precision == FLOAT32), portable[0])
