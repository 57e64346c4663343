"""The door to ONNX Runtime: providers, sessions and their errors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import PoolgraphError, ProviderError, SessionError, TaskNotSupported
from poolgraph.graphs.manifest import Graph, Variant
from poolgraph.runtime.capture_gate import GATE
from poolgraph.runtime.native_library import library_path
from poolgraph.runtime.provider_libraries import explain_failure, is_provider_failure, preload_libraries
from poolgraph.runtime.provider_options import DEFAULT_SETTINGS, ProviderRow, ProviderSettings, build_providers
from poolgraph.runtime.provider_trial import FATAL, try_provider
from poolgraph.runtime.providers import CPU_PROVIDER, OTHER_CURES

ERROR_SEVERITY: Final = 3

_STRICT: Final = MappingProxyType({"enable_fallback": False})
"""ONNX Runtime would try other providers by itself, and write about it to standard output."""

_OPTIMIZATION_LEVELS: Final = MappingProxyType(
    {
        "disable": "ORT_DISABLE_ALL",
        "basic": "ORT_ENABLE_BASIC",
        "extended": "ORT_ENABLE_EXTENDED",
        "all": "ORT_ENABLE_ALL",
    }
)


class Session(Protocol):
    """What poolgraph uses of ``onnxruntime.InferenceSession``."""

    def run(self, output_names: list[str], input_feed: Mapping[str, NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Run the graph and return the outputs named."""

    def get_providers(self) -> list[str]:
        """Return the providers that loaded."""

    def io_binding(self) -> Any:
        """Return a new binding of inputs and outputs to buffers."""

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """Run the graph from and to the buffers of a binding."""

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        """Let go of the CUDA graph with this ``gpu_graph_id``."""


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        ProviderError: it is not installed.
    """
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f'onnxruntime does not import ({error}); install it with `pip install "poolgraph[cpu]"` '
            'or `pip install "poolgraph[gpu]"`'
        ) from error


def available_providers() -> tuple[str, ...]:
    """Return the execution providers that this build of ONNX Runtime has; one may still fail to load."""
    return tuple(import_onnxruntime().get_available_providers())


@cache
def provider_loads(name: str) -> bool:
    """Whether a session really runs on a provider; found out once a process."""
    if name == CPU_PROVIDER:
        return True
    onnxruntime = import_onnxruntime()
    preload_libraries()
    onnxruntime.set_default_logger_severity(FATAL)
    return _try_apart(onnxruntime, name) is None


@contextlib.contextmanager
def mapped_errors(what: str) -> Iterator[None]:
    """Turn whatever ONNX Runtime raises inside the block into a SessionError that says ``what`` was being done."""
    try:
        yield
    except PoolgraphError:
        raise
    except Exception as error:
        raise SessionError(f"{what} failed: {error}") from error


def open_session(
    path: Path, variant: Variant, threads: int, *, provider: str, providers: Sequence[ProviderRow] | None = None
) -> Session:
    """Open an inference session over one graph.

    Args:
        path: The graph's file.
        variant: The variant it belongs to, whose session options apply.
        threads: Threads of a run.
        provider: Full name of the execution provider.
        providers: That provider and those for nodes that it leaves, with their options; None for it alone, without any.

    Raises:
        ProviderError: the provider did not load.
        SessionError: ONNX Runtime refused the graph.
    """
    onnxruntime = import_onnxruntime()
    options = build_session_options(onnxruntime, variant.session_options, threads)
    if variant.operators is not None:
        register_operators(options, variant.operators)
    disabled = variant.session_options.get("disabled_optimizers", "")
    arguments: dict[str, Any] = {
        "providers": [provider] if providers is None else list(providers),
        "disabled_optimizers": [name.strip() for name in disabled.split(",") if name.strip()],
    }
    with mapped_errors(f"opening {path}"):
        if provider == CPU_PROVIDER:
            session: Session = onnxruntime.InferenceSession(str(path), options, **arguments)
            return session
        return _open_on_device(
            lambda: onnxruntime.InferenceSession(str(path), options, **arguments, **_STRICT), provider
        )


def _open_on_device(build: Callable[[], Session], provider: str) -> Session:
    """Open a session on a provider that may fail to load, and say why it does."""
    onnxruntime = import_onnxruntime()
    preload_libraries()
    # It warns of every such session that no plugin has the provider, which is built in; what fails is raised below.
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with GATE.shared():
            session = build()
    except Exception as error:
        # Where the provider does not load, it may be the graph that is refused: the CPU lacks an operator of it.
        said = str(error) if is_provider_failure(str(error)) else _try_apart(onnxruntime, provider)
        if said is None:
            raise
        raise _did_not_load(provider, "", said) from error
    if provider not in session.get_providers():
        raise _did_not_load(provider, f", ONNX Runtime fell back to {session.get_providers()}", "")
    return session


def _try_apart(onnxruntime: ModuleType, provider: str) -> str | None:
    """Try a provider as ``try_provider`` does, while no other model captures: a session takes memory of the device."""
    with GATE.shared():
        return try_provider(onnxruntime, provider)


def _did_not_load(provider: str, instead: str, message: str) -> ProviderError:
    return ProviderError(
        f"provider {provider} did not load{instead}: {explain_failure(provider, message)}{OTHER_CURES}"
    )


def build_session_options(onnxruntime: ModuleType, entries: Mapping[str, str], threads: int) -> Any:
    """Build ONNX Runtime's session options from a variant's entries.

    Raises:
        SessionError: an entry that ONNX Runtime does not know.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A pattern is kept for every shape ever seen: without a bound when lengths vary.
    options.enable_mem_pattern = False
    options.log_severity_level = ERROR_SEVERITY
    for key, value in entries.items():
        if key == "graph_optimization_level":
            level = _OPTIMIZATION_LEVELS.get(value)
            if level is None:
                raise SessionError(f"graph_optimization_level {value!r} is not one of {list(_OPTIMIZATION_LEVELS)}")
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        elif key != "disabled_optimizers":
            with mapped_errors(f"setting session option {key}"):
                options.add_session_config_entry(key, value)
    return options


def register_operators(options: Any, operators: str) -> None:
    """Make operators of this package's own known to sessions that are opened with ``options``.

    Raises:
        SessionError: the library is not there, or ONNX Runtime refused it.
    """
    path = library_path(operators)
    if path is None:
        raise SessionError(
            "poolgraph was installed without its library of operators; install it where there is a C++ compiler"
        )
    with mapped_errors(f"loading {path.name}"):
        options.register_custom_ops_library(str(path))


def run_graph(session: Session, graph: Graph, feed: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    """Run one batch and fetch the graph's raw output alone.

    Raises:
        SessionError: ONNX Runtime failed.
    """
    with mapped_errors(f"running {graph.file}"):
        return session.run([graph.raw_output], feed)[0]


@dataclass(slots=True, kw_only=True)
class SessionPool:
    """The sessions of one variant, opened on first use: one a graph family and thread count.

    Each session packs its own copy of the weights, so few thread counts should be asked for.

    Attributes:
        directory: The artifact's.
        variant: Whose graphs are opened.
        provider: Full name of the execution provider.
        settings: What its options depend on.
    """

    directory: Path
    variant: Variant
    provider: str
    settings: ProviderSettings = DEFAULT_SETTINGS
    _sessions: dict[tuple[str, int], Session] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _closed: bool = field(default=False, init=False)

    def graph(self, family: str) -> Graph:
        """Return the graph of a family, ``sequence`` or ``token``.

        Raises:
            TaskNotSupported: the variant has none.
        """
        graph = self.variant.graphs.get(family)
        if graph is None:
            raise TaskNotSupported(
                f"variant {self.variant.name!r} has no {family} graph; it has {sorted(self.variant.graphs)}"
            )
        return graph

    def session(self, family: str, threads: int) -> Session:
        """Return the session over a family's graph whose runs use ``threads`` threads.

        Raises:
            SessionError: the pool is closed, or ONNX Runtime refused the graph.
        """
        found = self._sessions.get((family, threads))
        if found is not None:
            return found
        graph = self.graph(family)
        path = self.directory / graph.file
        with self._lock:
            if self._closed:
                raise SessionError("the model is closed; load it again")
            if (family, threads) not in self._sessions:
                self._sessions[family, threads] = open_session(
                    path,
                    self.variant,
                    threads,
                    provider=self.provider,
                    providers=build_providers(self.provider, graph, self.settings),
                )
            return self._sessions[family, threads]

    def close(self) -> None:
        """Let go of the sessions; a run under way still ends well."""
        with self._lock:
            self._closed = True
            with GATE.shared():  # what is freed of the device spoils a capture of another model's
                self._sessions.clear()
