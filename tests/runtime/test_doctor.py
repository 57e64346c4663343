"""The doctor finds what is there, says what is missing, and fails at nothing."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from poolgraph.runtime import doctor
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.doctor import (
    ExtraCheck,
    check_extra,
    check_providers,
    choose_provider,
    examine,
    format_doctor,
)
from poolgraph.runtime.doctor_cuda import CudaReport
from poolgraph.runtime.native_library import LIBRARIES
from poolgraph.runtime.provider_trial import IDENTITY_MODEL


def fake_onnxruntime(listed, *, loading=(), failing=()):
    """A module that lists providers, of which some load, some fall back to the CPU and some raise."""

    def open_session(model, options, *, providers, enable_fallback):
        assert model == IDENTITY_MODEL
        assert not enable_fallback
        if providers[0] in failing:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file\nmore lines")
        return SimpleNamespace(get_providers=lambda: [*(p for p in providers if p in loading), "CPUExecutionProvider"])

    severities = []
    return SimpleNamespace(
        get_available_providers=lambda: listed,
        set_default_logger_severity=severities.append,
        severities=severities,
        SessionOptions=SimpleNamespace,
        InferenceSession=open_session,
    )


def test_the_hand_written_model_is_a_model():
    model = onnx.load_model_from_string(IDENTITY_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    assert build_identity_model().SerializeToString(deterministic=True) == IDENTITY_MODEL
    session = onnxruntime.InferenceSession(IDENTITY_MODEL, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3.5], np.float32)})[0].tolist() == [3.5]


def build_identity_model():
    value = {"elem_type": onnx.TensorProto.FLOAT, "shape": {"dim": [{"dim_value": 1}]}}
    return onnx.ModelProto(
        ir_version=8,
        graph=onnx.GraphProto(
            name="g",
            node=[onnx.NodeProto(op_type="Identity", input=["x"], output=["y"])],
            input=[onnx.ValueInfoProto(name="x", type=onnx.TypeProto(tensor_type=value))],
            output=[onnx.ValueInfoProto(name="y", type=onnx.TypeProto(tensor_type=value))],
        ),
        opset_import=[onnx.OperatorSetIdProto(version=17)],
    )


def test_this_machine():
    report = examine()
    assert report.python == platform.python_version()
    assert report.packages["numpy"] == np.__version__
    assert {check.name: check.loads for check in report.providers}["CPUExecutionProvider"]
    assert report.provider == choose_provider(report.providers)
    assert report.one_batch.threads == report.cpu.num_cores
    for name in ("files", "serve", "bench"):
        assert name in {extra.name for extra in report.extras}
    assert ExtraCheck(name="files", missing=()) in report.extras
    text = format_doctor(report)
    assert f"numpy            {np.__version__}" in text
    assert "CPUExecutionProvider         loads" in text
    assert report.cache in text


def test_the_report_is_json():
    decoded = msgspec.json.decode(msgspec.json.encode(examine()))
    assert "CPUExecutionProvider" in [check["name"] for check in decoded["providers"]]
    assert isinstance(decoded["cpu"]["num_cores"], int)


def test_a_listed_provider_need_not_load(monkeypatch):
    monkeypatch.setattr(doctor, "explain_failure", lambda name, message="": f"{name} said {message[:30]!r}")
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    module = fake_onnxruntime(listed, failing=["TensorrtExecutionProvider"])
    checks = check_providers(lambda: module)
    assert [(check.name, check.loads) for check in checks] == [(name, name.startswith("CPU")) for name in listed]
    assert checks[0].reason == "TensorrtExecutionProvider said 'libcudnn.so.9: cannot open sha'"
    assert checks[1].reason == "CUDAExecutionProvider said ''"
    assert module.severities == [4, 2]


def test_the_best_provider_that_loads_is_picked():
    listed = ["CPUExecutionProvider", "CUDAExecutionProvider"]
    assert choose_provider(check_providers(lambda: fake_onnxruntime(listed, loading=listed))) == "CUDAExecutionProvider"
    assert choose_provider(check_providers(lambda: fake_onnxruntime(listed))) == "CPUExecutionProvider"


def test_tensorrt_is_never_picked_by_itself():
    listed = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    assert choose_provider(check_providers(lambda: fake_onnxruntime(listed, loading=listed))) == "CPUExecutionProvider"


def test_a_machine_without_cuda_is_told_so(monkeypatch):
    monkeypatch.setattr(doctor, "examine_cuda", lambda cuda_loads: CudaReport(onnxruntime_cuda=None))
    assert "CUDA\n  none: this onnxruntime was built without CUDA" in format_doctor(examine())


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'onnxruntime'"), OSError("libgomp.so.1")])
def test_without_onnxruntime_the_cure_is_said(error):
    def fail():
        raise error

    report = examine(fail)
    assert report.provider is None
    text = format_doctor(report)
    assert f"CPUExecutionProvider         does not load: onnxruntime does not load: {error}" in text
    assert 'none loads (pip install "poolgraph[cpu]")' in text


def test_missing_packages_are_named_by_extra(monkeypatch):
    real = doctor.read_version
    monkeypatch.setattr(doctor, "read_version", lambda name: None if name in {"torch", "pyarrow"} else real(name))
    assert check_extra("files").missing == ("pyarrow",)
    assert check_extra("export").missing == ("torch",)
    text = format_doctor(examine())
    assert 'files            missing pyarrow (pip install "poolgraph[files]")' in text
    assert "torch            not installed" in text


def test_libraries_of_operators_that_were_not_compiled_are_told_of(monkeypatch):
    monkeypatch.setattr(doctor, "available_operators", lambda: ("poolgraph.cpu/5", "poolgraph.cpu/6"))
    monkeypatch.setattr(doctor, "find_library", lambda name: LIBRARIES[name.partition("/")[0]][-1])
    monkeypatch.setattr(doctor, "used_instructions", lambda name: ("amx_int8", "amx_bf16") if "cpu/6" in name else ())
    text = format_doctor(examine())
    assert "  poolgraph.cpu/6  load, compiled for avx2 fma, using amx_int8 amx_bf16\n" in text
    assert "  poolgraph.cuda/1 not compiled, or do not load: variants of --target cublaslt do not run; install" in text
    assert {name.partition("/")[0] for name in doctor.WITHOUT_OPERATORS} == LIBRARIES.keys()


def test_poolgraph_itself_not_installed(monkeypatch):
    def fail(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", fail)
    assert check_extra("cpu").missing == ("poolgraph itself is not installed as a package",)


def test_only_instruction_sets_that_matter_are_shown():
    report = replace(examine(), cpu=CpuInfo(model="Some CPU", num_cores=3, features=("amx_int8", "avx2", "fpu")))
    assert "  Some CPU, 3 cores for this process\n  avx2 amx_int8\n" in format_doctor(report)
    report = replace(report, cpu=CpuInfo(model="", num_cores=1, features=()))
    assert "no instruction set that matters" in format_doctor(report)
