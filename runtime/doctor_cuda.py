"""What this machine offers to the CUDA provider: its libraries, cuDNN's version, the kernel that attention runs on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from poolgraph.runtime.attention_route import load_cudnn_version, name_cudnn_version
from poolgraph.runtime.doctor_attention import AttentionCheck, check_attention
from poolgraph.runtime.provider_libraries import (
    LibraryCheck,
    check_libraries,
    preload_libraries,
    read_cuda_version,
)
from poolgraph.runtime.providers import CUDA_PROVIDER, TENSORRT_PROVIDER


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaReport:
    """What was found.

    Attributes:
        onnxruntime_cuda: Version of CUDA that ONNX Runtime was built with; None for a build without it.
        libraries: The libraries of the CUDA and TensorRT providers; none where ONNX Runtime cannot use them.
        cudnn: cuDNN's version; None where it does not load.
        attention: The kernel of attention; None where no session runs on CUDA.
    """

    onnxruntime_cuda: str | None
    libraries: tuple[LibraryCheck, ...] = ()
    cudnn: str | None = None
    attention: AttentionCheck | None = None


def examine_cuda(
    *,
    cuda_loads: bool,
    read_version: Callable[[], str | None] = read_cuda_version,
    load: Callable[[str], ctypes.CDLL] = ctypes.CDLL,
    attention: Callable[..., AttentionCheck] = check_attention,
) -> CudaReport:
    """Look at what CUDA needs; ``cuda_loads`` says whether a session runs on it, which it is not tried without."""
    version = read_version()
    if version is None:
        return CudaReport(onnxruntime_cuda=None)
    preload_libraries()
    rows = check_libraries(TENSORRT_PROVIDER, load=load, cuda_version=version)
    cudnn = load_cudnn_version(load)
    return CudaReport(
        onnxruntime_cuda=version,
        libraries=rows,
        cudnn=None if cudnn is None else name_cudnn_version(cudnn),
        attention=attention(cudnn=cudnn) if cuda_loads else None,
    )


def format_cuda(report: CudaReport) -> list[str]:
    """Write the report for people, a line each."""
    if report.onnxruntime_cuda is None:
        return ['none: this onnxruntime was built without CUDA (pip install "poolgraph[gpu]" on a machine with a GPU)']
    lines = [f"{'onnxruntime':<24} built with CUDA {report.onnxruntime_cuda}"]
    lines += [_format_library(check) for check in report.libraries]
    lines.append(f"{'cuDNN':<24} {report.cudnn or 'not found'}")
    lines.append(f"{'attention':<24} {_format_attention(report.attention)}")
    return lines


def _format_library(check: LibraryCheck) -> str:
    library = check.library
    return f"{library.name:<24} {'loads' if check.loads else f'missing ({library.what}): {library.cure}'}"


def _format_attention(check: AttentionCheck | None) -> str:
    if check is None:
        return f"not tried, since {CUDA_PROVIDER} does not load"
    return f"{check.kernel}, the fast kernel" if check.is_fast else f"SLOW: {check.reason}"
