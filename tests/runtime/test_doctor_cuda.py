"""The doctor's part about CUDA: libraries, cuDNN's version, and the kernel that attention runs on."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import msgspec
import onnx
import pytest

from poolgraph.runtime.attention_route import load_cudnn_version
from poolgraph.runtime.doctor_attention import ATTENTION_MODEL, AttentionCheck, check_attention, parse_attention
from poolgraph.runtime.doctor_cuda import CudaReport, examine_cuda, format_cuda
from poolgraph.runtime.provider_libraries import CUDNN


def build_attention_model():
    def tensor(name, element, sizes):
        shape = {"dim": [{"dim_value": size} for size in sizes]}
        kind = onnx.TypeProto(tensor_type={"elem_type": element, "shape": shape})
        return onnx.ValueInfoProto(name=name, type=kind)

    half, sizes = onnx.TensorProto.FLOAT16, (2, 128, 128)
    node = onnx.NodeProto(
        op_type="MultiHeadAttention",
        domain="com.microsoft",
        input=["q", "k", "v", "", "l"],
        output=["y"],
        attribute=[onnx.AttributeProto(name="num_heads", type=onnx.AttributeProto.INT, i=2)],
    )
    graph = onnx.GraphProto(
        name="g",
        node=[node],
        input=[*(tensor(name, half, sizes) for name in "qkv"), tensor("l", onnx.TensorProto.INT32, (2,))],
        output=[tensor("y", half, sizes)],
    )
    opsets = [
        onnx.OperatorSetIdProto(version=17),
        onnx.OperatorSetIdProto(domain="com.microsoft", version=1),
    ]
    return onnx.ModelProto(ir_version=8, graph=graph, opset_import=opsets)


def test_the_hand_written_model_is_a_model():
    assert build_attention_model().SerializeToString(deterministic=True) == ATTENTION_MODEL


@pytest.mark.parametrize(
    ("output", "cudnn", "kernel", "is_fast", "reason"),
    [
        ("Operator=MultiHeadAttention SdpaKernel=CUDNN_FLASH_ATTENTION", 91300, "CUDNN_FLASH_ATTENTION", True, ""),
        ("a\nNode=x SdpaKernel=MATH\nb", None, "MATH", False, 'cuDNN is missing: pip install "poolgraph[gpu]"'),
        ("SdpaKernel=MATH", 91001, "MATH", False, "install 9.3 or newer, other than 9.10.0 and 9.10.1"),
        ("SdpaKernel=MATH", 91300, "MATH", False, "below compute capability 9.0"),
        ("SdpaKernel=EFFICIENT_ATTENTION", 91300, "EFFICIENT_ATTENTION", False, "runs on EFFICIENT_ATTENTION"),
        ("Traceback\nRuntimeError: no device", 91300, None, False, "(exit code 1): RuntimeError: no device"),
        ("", 91300, None, False, "it printed nothing"),
    ],
)
def test_what_onnxruntime_prints(output, cudnn, kernel, is_fast, reason):
    check = parse_attention(output, 1, cudnn=cudnn)
    assert (check.kernel, check.is_fast) == (kernel, is_fast)
    assert reason in check.reason


def test_the_check_is_a_process_of_its_own_that_is_told_to_speak(monkeypatch):
    monkeypatch.setenv("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")
    seen = {}

    def run(command, *, env, **options):
        seen.update(command=command[1:], speaks=env["ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"], env=env)
        return subprocess.CompletedProcess(command, 0, "SdpaKernel=MATH", "")

    assert check_attention(run, cudnn=91300).kernel == "MATH"
    assert seen["command"] == ["-m", "poolgraph.runtime.doctor_attention"]
    assert seen["speaks"] == "1"
    assert seen["env"]["ORT_ENABLE_CUDNN_FLASH_ATTENTION"] == "0"


def test_a_check_that_hangs():
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, 120)

    assert "did not run" in check_attention(run, cudnn=None).reason


@pytest.mark.gpu
def test_attention_runs_on_the_fast_kernel():
    check = check_attention(cudnn=load_cudnn_version())
    assert check.is_fast, check.reason


def fake_cudnn(name):
    if name != CUDNN:
        raise OSError(name)

    def ask():
        return 91002

    return SimpleNamespace(cudnnGetVersion=ask)


def examine(*, cuda_loads, version="13.0"):
    return examine_cuda(
        cuda_loads=cuda_loads,
        read_version=lambda: version,
        load=fake_cudnn,
        attention=lambda *, cudnn: AttentionCheck(kernel="MATH", is_fast=False, reason=f"cuDNN {cudnn}"),
    )


def test_reports():
    assert examine(cuda_loads=True, version=None) == CudaReport(onnxruntime_cuda=None)
    without = examine(cuda_loads=False)
    assert (without.cudnn, without.attention) == ("9.10.2", None)
    loading = {check.library.name for check in without.libraries if check.loads}
    assert loading == {CUDNN}
    text = "\n".join(format_cuda(without))
    assert "onnxruntime              built with CUDA 13.0" in text
    assert 'libcudart.so.13          missing (the CUDA 13 runtime): pip install "poolgraph[gpu]"' in text
    assert "cuDNN                    9.10.2" in text
    assert "not tried, since CUDAExecutionProvider does not load" in text
    assert "attention                SLOW: cuDNN 91002" in "\n".join(format_cuda(examine(cuda_loads=True)))
    assert b"9.10.2" in msgspec.json.encode(without)
