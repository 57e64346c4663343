import sys
import threading
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from poolgraph.errors import ProviderError, SessionError, TaskNotSupported
from poolgraph.graphs.manifest import parse_manifest
from poolgraph.runtime import session as session_module
from poolgraph.runtime.provider_trial import IDENTITY_MODEL
from poolgraph.runtime.session import (
    SessionPool,
    available_providers,
    build_session_options,
    import_onnxruntime,
    mapped_errors,
    open_session,
    run_graph,
)

CPU = "CPUExecutionProvider"


@pytest.fixture
def explained(monkeypatch):
    """Machines differ in what is missing: here, what ONNX Runtime said is the reason."""
    monkeypatch.setattr(session_module, "explain_failure", lambda provider, said="": f"since {said!r}, install it")


@pytest.fixture
def variant(artifact):
    return parse_manifest((artifact / "poolgraph.json").read_bytes()).variant("cpu_fp32")


@pytest.fixture
def pool(artifact, variant):
    return SessionPool(directory=artifact, variant=variant, provider=CPU)


def test_options_of_every_session(variant):
    options = build_session_options(import_onnxruntime(), variant.session_options, 3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.enable_mem_pattern is False
    assert options.log_severity_level == 3
    assert options.execution_mode.name == "ORT_SEQUENTIAL"
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"


def test_config_entries_are_set():
    entries = {"session.intra_op.allow_spinning": "0"}
    options = build_session_options(import_onnxruntime(), entries, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_unknown_optimization_level():
    with pytest.raises(SessionError, match="graph_optimization_level 'most' is not one of"):
        build_session_options(import_onnxruntime(), {"graph_optimization_level": "most"}, 1)


def test_disabled_optimizers_reach_onnxruntime(monkeypatch, artifact, variant):
    seen = {}
    onnxruntime = import_onnxruntime()

    def record(path, options, *, providers, disabled_optimizers):
        seen.update(providers=providers, disabled=disabled_optimizers)
        return SimpleNamespace(get_providers=lambda: providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    entries = {"disabled_optimizers": "GeluFusion, LayerNormFusion"}
    open_session(artifact / "x", msgspec.structs.replace(variant, session_options=entries), 1, provider=CPU)
    assert seen == {"providers": [CPU], "disabled": ["GeluFusion", "LayerNormFusion"]}


def test_a_provider_that_silently_falls_back_is_an_error(monkeypatch, explained, artifact, variant):
    onnxruntime = import_onnxruntime()
    fallen = SimpleNamespace(get_providers=lambda: [CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen)
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider did not load.*since '', install it"):
        open_session(artifact / "x", variant, 1, provider="CUDAExecutionProvider")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcublas.so.13: cannot open",
            ProviderError,
        ),
        ("CUDA failure 100: no CUDA-capable device is detected", ProviderError),
        ("CUDA_PATH is set but CUDA wasn't able to be loaded", ProviderError),
        ("Load model from x failed: Protobuf parsing failed", SessionError),
    ],
)
def test_a_provider_that_fails_aloud_is_told_from_a_graph_that_does(
    monkeypatch, explained, artifact, variant, message, kind
):
    def fail(model, *_arguments, enable_fallback, **_others):
        assert enable_fallback is False
        if model == IDENTITY_MODEL:
            return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", CPU])
        raise RuntimeError(message)

    monkeypatch.setattr(import_onnxruntime(), "InferenceSession", fail)
    with pytest.raises(kind) as caught:
        open_session(artifact / "x", variant, 1, provider="CUDAExecutionProvider")
    assert isinstance(caught.value.__cause__, RuntimeError)
    if kind is ProviderError:
        assert f"provider CUDAExecutionProvider did not load: since {message!r}, install it" in str(caught.value)


def test_a_graph_that_is_refused_since_the_provider_is_not_there(monkeypatch, explained, artifact, variant):
    """What onnxruntime-gpu does without a driver: it goes on with the CPU, which lacks the graph's operators."""

    def fall_back(model, *_arguments, **_others):
        if model == IDENTITY_MODEL:
            return SimpleNamespace(get_providers=lambda: [CPU])
        raise RuntimeError("NOT_IMPLEMENTED : Failed to find kernel for com.microsoft.PackedMultiHeadAttention(1)")

    monkeypatch.setattr(import_onnxruntime(), "InferenceSession", fall_back)
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider did not load: since '', install it"):
        open_session(artifact / "x", variant, 1, provider="CUDAExecutionProvider")


def test_a_graph_that_onnxruntime_refuses(tmp_path, variant):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(SessionError, match=r"opening .*broken\.onnx failed") as caught:
        open_session(path, variant, 1, provider=CPU)
    assert type(caught.value.__cause__).__module__.startswith("onnxruntime")


def test_a_run_that_fails(pool):
    graph = pool.graph("sequence")
    with pytest.raises(SessionError, match=r"running onnx/cpu_fp32\.onnx failed") as caught:
        run_graph(pool.session("sequence", 1), graph, {"input_ids": np.array([[9999]])})
    assert caught.value.__cause__ is not None


def test_every_error_of_onnxruntime_is_mapped():
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 5
    for kind in kinds:
        with pytest.raises(SessionError, match="testing failed: why"), mapped_errors("testing"):
            raise kind("why")


def test_onnxruntime_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ProviderError, match=r'pip install "poolgraph\[cpu\]"') as caught:
        available_providers()
    assert isinstance(caught.value.__cause__, ImportError)


def test_available_providers_have_the_cpu():
    assert CPU in available_providers()


def test_sessions_open_on_first_use_and_once(monkeypatch, pool):
    opened = []

    def slow_open(path, variant, threads, *, provider, providers):
        opened.append((path.name, threads))
        time.sleep(0.02)
        return object()

    monkeypatch.setattr(session_module, "open_session", slow_open)
    assert opened == []
    found = []
    threads = [threading.Thread(target=lambda: found.append(pool.session("sequence", 2))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [("cpu_fp32.onnx", 2)]
    assert len(set(map(id, found))) == 1
    pool.session("sequence", 1)
    pool.session("token", 1)
    assert opened[1:] == [("cpu_fp32.onnx", 1), ("cpu_fp32_tokens.onnx", 1)]


def test_a_closed_pool_opens_nothing(pool):
    pool.session("sequence", 1)
    pool.close()
    with pytest.raises(SessionError, match="the model is closed"):
        pool.session("sequence", 1)


def test_a_family_that_is_not_there(make_artifact):
    directory = make_artifact(families=("sequence",))
    variant = parse_manifest((directory / "poolgraph.json").read_bytes()).variant("cpu_fp32")
    with pytest.raises(TaskNotSupported, match=r"variant 'cpu_fp32' has no token graph; it has \['sequence'\]"):
        SessionPool(directory=directory, variant=variant, provider=CPU).graph("token")
