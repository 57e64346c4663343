"""Why a provider does not load: the missing library and its cure."""

from __future__ import annotations

import pytest

from poolgraph.runtime.provider_libraries import check_libraries, explain_failure

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def loader(*missing):
    def load(name):
        if name in missing:
            raise OSError(f"{name}: cannot open shared object file")

    return load


def explain(provider, *missing, cuda_version="13.0", message=""):
    checks = check_libraries(provider, load=loader(*missing), cuda_version=cuda_version)
    return explain_failure(provider, message, checks=checks)


@pytest.mark.parametrize(
    ("provider", "missing", "version", "expected"),
    [
        (CUDA, "libcuda.so.1", "13.0", "libcuda.so.1 (NVIDIA's driver) is missing: install NVIDIA's driver"),
        (
            CUDA,
            "libcudart.so.13",
            "13.0",
            'libcudart.so.13 (the CUDA 13 runtime) is missing: pip install "poolgraph[gpu]"',
        ),
        (CUDA, "libcublas.so.12", "12.8", "libcublas.so.12 (cuBLAS for CUDA 12) is missing"),
        (TENSORRT, "libnvinfer.so.10", "13.0", '(TensorRT 10) is missing: pip install "poolgraph[tensorrt]"'),
        (TENSORRT, "libcublasLt.so.13", "13.0", "libcublasLt.so.13 (cuBLASLt for CUDA 13) is missing"),
    ],
)
def test_what_is_missing_is_named_with_its_cure(provider, missing, version, expected):
    assert expected in explain(provider, missing, cuda_version=version)


def test_several_are_named_together():
    text = explain(CUDA, "libcuda.so.1", "libcurand.so.10")
    assert "libcuda.so.1" in text
    assert "libcurand.so.10" in text


def test_cudnn_is_not_what_keeps_the_provider_from_loading():
    assert "libcudnn" not in explain(CUDA, "libcudnn.so.9")


def test_onnxruntimes_own_words_count_when_all_load():
    message = (
        "[ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: "
        "libcufft.so.11: cannot open shared object file: No such file or directory"
    )
    assert explain(CUDA, message=message) == 'libcufft.so.11 is missing: pip install "poolgraph[gpu]"'
    assert explain(CUDA, message="CUDA failure 35: driver too old\nmore").startswith("CUDA failure 35: driver too old;")


def test_a_device_that_is_not_there():
    assert "its libraries load, so its device or driver does not" in explain(CUDA)


def test_other_providers_have_no_libraries():
    assert check_libraries("CPUExecutionProvider") == ()
