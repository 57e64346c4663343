"""Whether the attention of padded encoders can take cuDNN's kernel here.

Without it, ONNX Runtime computes attention by plain products: of BGE-large on an H100, 157 rows a second in place of
546 (microsoft/onnxruntime, pull request 29717).
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from poolgraph.graphs.manifest import Variant
from poolgraph.runtime.provider_libraries import CUDNN, preload_libraries
from poolgraph.runtime.providers import CUDA_PROVIDER, INSTALL_CURES

LEAST_CUDNN: Final = 90300
"""The first cuDNN whose attention ONNX Runtime takes (``cudnn_fmha/cudnn_flash_attention.cc``), as 10000 major + 100
minor + patch."""

BROKEN_CUDNN: Final = frozenset({91000, 91001})
"""Those that it passes over."""

SWITCH: Final = "ORT_ENABLE_CUDNN_FLASH_ATTENTION"

_OPERATOR: Final = b"MultiHeadAttention"


def load_cudnn_version(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> int | None:
    """Return the number of the cuDNN 9 that loads here, 91002 for 9.10.2; None where none does."""
    try:
        library = load(CUDNN)
    except OSError:
        return None
    ask = library.cudnnGetVersion
    ask.restype = ctypes.c_size_t
    return int(ask())


def name_cudnn_version(number: int) -> str:
    """Return a version as cuDNN 9 numbers it, 91002 for 9.10.2, in the usual form."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def why_slow(cudnn: int | None, environment: Mapping[str, str]) -> str | None:
    """Return why cuDNN's attention is out of reach, with the cure; None where nothing known keeps it away.

    Args:
        cudnn: Its number, as of ``load_cudnn_version``.
        environment: Of this process.
    """
    if environment.get(SWITCH) == "0":
        return f"{SWITCH}=0 switches cuDNN's attention off: unset it"
    if cudnn is None:
        return f"cuDNN is missing: {INSTALL_CURES[CUDA_PROVIDER]}"
    if cudnn < LEAST_CUDNN or cudnn in BROKEN_CUDNN:
        return (
            f"cuDNN {name_cudnn_version(cudnn)} is not one that ONNX Runtime's attention takes: install 9.3 or newer, "
            "other than 9.10.0 and 9.10.1"
        )
    return None


def warn_of_slow_attention(
    directory: Path,
    variant: Variant,
    provider: str,
    *,
    load_version: Callable[[], int | None] = load_cudnn_version,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Warn where a variant on CUDA has attention that only cuDNN computes fast, and cuDNN does not.

    Packed attention and that of decoders have other kernels. Nothing is said of packed attention within a window, which
    is MultiHeadAttention too, of blocks.
    """
    if provider != CUDA_PROVIDER or variant.layout != "padded":
        return
    graph = next(iter(variant.graphs.values()))
    # Names of operators stand in the file as they are; weights are in files of their own.
    if _OPERATOR not in (directory / graph.file).read_bytes():
        return
    preload_libraries()
    reason = why_slow(load_version(), environment)
    if reason is not None:
        warnings.warn(f"{variant.name}: attention runs on a slow kernel, since {reason}", UserWarning, stacklevel=4)
