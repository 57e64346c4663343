from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from poolgraph.errors import InputError, ProviderError
from poolgraph.graphs.manifest import parse_manifest
from poolgraph.runtime import export_precision, loading
from poolgraph.runtime import session as session_module
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.fidelity_report import plan_fidelity
from poolgraph.runtime.providers import Wish

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CPU_INFO = CpuInfo(model="m", num_cores=2, features=())


@pytest.fixture
def with_cuda(artifact):
    """A manifest with a CUDA variant beside the others."""
    manifest = parse_manifest((artifact / "poolgraph.json").read_bytes())
    replace = msgspec.structs.replace
    cuda = replace(manifest.variant("cpu_fp32"), name="cuda_fp16", target="cuda", precision="fp16", providers=(CUDA,))
    return replace(manifest, variants=(*manifest.variants, cuda))


@pytest.fixture
def cuda_listed(monkeypatch):
    """ONNX Runtime lists CUDA, and falls back to the CPU when a session asks for it."""
    monkeypatch.setattr(loading, "available_providers", lambda: (CUDA, CPU))
    onnxruntime = session_module.import_onnxruntime()
    fallen = SimpleNamespace(get_providers=lambda: [CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen)


def test_a_provider_that_is_listed_but_does_not_load_is_passed_over(artifact, with_cuda, cuda_listed):
    sessions = loading.open_sessions(artifact, with_cuda, Wish(), CPU_INFO)
    assert (sessions.variant.name, sessions.provider) == ("cpu_fp32", CPU)


def test_it_is_an_error_when_it_was_asked_for(artifact, with_cuda, cuda_listed):
    with pytest.raises(ProviderError, match="CUDAExecutionProvider did not load"):
        loading.open_sessions(artifact, with_cuda, Wish(provider="cuda"), CPU_INFO)


@pytest.mark.parametrize("wish", [Wish(variant="cuda_fp16"), Wish(precision="fp16")])
def test_why_it_does_not_load_is_said_where_only_it_has_what_was_asked_for(artifact, with_cuda, cuda_listed, wish):
    with pytest.raises(ProviderError, match="CUDAExecutionProvider did not load") as told:
        loading.open_sessions(artifact, with_cuda, wish, CPU_INFO)
    assert "fallback=True" not in str(told.value), "no other provider has it"


def test_a_provider_that_does_not_load_is_not_one_to_compare_precisions_on(with_cuda, cuda_listed, monkeypatch):
    monkeypatch.setattr(loading, "provider_loads", session_module.provider_loads.__wrapped__)
    assert loading.this_machine(CPU_INFO).providers == (CUDA, CPU)
    assert loading.working_machine(CPU_INFO).providers == (CPU,)
    assert plan_fidelity(with_cuda).variants == ()


def test_it_is_a_warning_with_fallback(artifact, with_cuda, cuda_listed):
    with pytest.warns(UserWarning, match=r"did not load.*(?<!fallback=True)\. Running on CPUExecutionProvider"):
        sessions = loading.open_sessions(artifact, with_cuda, Wish(provider="cuda", fallback=True), CPU_INFO)
    assert sessions.variant.name == "cpu_fp32"


@pytest.mark.parametrize(("listed", "said"), [((TENSORRT, CUDA, CPU), "did not load"), ((CUDA, CPU), "does not load")])
def test_with_fallback_it_is_told_why_the_provider_asked_for_does_not_load(
    artifact, with_cuda, cuda_listed, monkeypatch, listed, said
):
    monkeypatch.setattr(loading, "available_providers", lambda: listed)
    with pytest.warns(UserWarning, match=rf"TensorrtExecutionProvider {said}.*(?<!fallback=True)\. Running on CPU"):
        loading.open_sessions(artifact, with_cuda, Wish(provider="tensorrt", fallback=True), CPU_INFO)
    assert not (artifact / "tensorrt").exists()


def test_checkpoints_go_through_the_cache(tmp_path, artifact, monkeypatch):
    asked = []
    resolve = lambda path, options: asked.append((str(path), options)) or artifact  # noqa: E731
    monkeypatch.setattr("poolgraph.runtime.cache.resolve_artifact", resolve)
    monkeypatch.setattr(export_precision, "available_providers", lambda: (CPU,))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    for path in (tmp_path / "checkpoint", "owner/name", "name"):
        assert loading.resolve_directory(path) == artifact
    assert loading.resolve_directory("name", Wish(precision="bf16")) == artifact
    paths = [str(tmp_path / "checkpoint"), "owner/name", "name"]
    assert loading.resolve_directory("name", Wish(variant="portable_int8")) == artifact
    of_wishes = [("name", {"precision": precision}) for precision in ("bf16", "int8")]
    assert asked == [*((path, {}) for path in paths), *of_wishes]


def test_files_are_left_for_opening_to_refuse(tmp_path):
    file = tmp_path / "model.onnx"
    file.touch()
    assert loading.resolve_directory(file) == file


@pytest.mark.parametrize(
    ("number", "message"), [("2", "not str"), (1.5, "not float"), (True, "not bool"), (0, "got 0")]
)
def test_counts(number, message):
    with pytest.raises(InputError, match=f"threads must be .*{message}"):
        loading.check_count("threads", number)
    loading.check_count("threads", np.int64(2))


def test_names():
    with pytest.raises(InputError, match="provider must be a str or None, not int"):
        loading.check_name("provider", 3)
    loading.check_name("provider", None)


def test_artifacts_are_taken_as_they_are(artifact):
    assert loading.resolve_directory(str(artifact)) == artifact
