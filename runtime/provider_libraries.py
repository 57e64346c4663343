"""Why an execution provider does not load, and the cure: which of its libraries is missing on this machine."""

from __future__ import annotations

import ctypes
import io
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final

from poolgraph.runtime.providers import CUDA_PROVIDER, INSTALL_CURES, TENSORRT_PROVIDER

CUDNN: Final = "libcudnn.so.9"

_TENSORRT_LIBRARIES: Final = ("libnvinfer.so.10", "libnvonnxparser.so.10")

_DEFAULT_CUDA: Final = "13"
_DRIVER_CURE: Final = "install NVIDIA's driver; in a container, start it with the GPUs (docker run --gpus all)"

_PROVIDER_FAILURES: Final = (
    "cannot open shared object",
    "failed to load library",
    "able to be loaded",
    "no cuda-capable device",
    "driver version is insufficient",
    "failed to create cudaexecutionprovider",
    "failed to create tensorrtexecutionprovider",
    "please install tensorrt",
    "unknown error initializing cuda",
)
"""What ONNX Runtime and CUDA say when a provider does not load, in lower case."""

_MISSING: Final = re.compile(r"(lib[\w+.-]+?\.so(?:\.\d+)*): cannot open shared object file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A shared library that a provider needs.

    Attributes:
        name: Its file's name; ``{cuda}`` stands for the major version of CUDA that ONNX Runtime was built with.
        what: What it is.
        cure: How to get it.
        required: Whether the provider loads without it.
    """

    name: str
    what: str
    cure: str
    required: bool = True


_CUDA_LIBRARIES: Final = (
    Library(name="libcuda.so.1", what="NVIDIA's driver", cure=_DRIVER_CURE),
    Library(name="libcudart.so.{cuda}", what="the CUDA {cuda} runtime", cure=INSTALL_CURES[CUDA_PROVIDER]),
    Library(name="libcublas.so.{cuda}", what="cuBLAS for CUDA {cuda}", cure=INSTALL_CURES[CUDA_PROVIDER]),
    Library(name="libcublasLt.so.{cuda}", what="cuBLASLt for CUDA {cuda}", cure=INSTALL_CURES[CUDA_PROVIDER]),
    Library(name="libcurand.so.10", what="cuRAND", cure=INSTALL_CURES[CUDA_PROVIDER]),
    Library(
        name=CUDNN,
        what="cuDNN 9, without which attention runs on a slow kernel",
        cure=INSTALL_CURES[CUDA_PROVIDER],
        required=False,
    ),
)

LIBRARIES: Final[Mapping[str, tuple[Library, ...]]] = MappingProxyType(
    {
        CUDA_PROVIDER: _CUDA_LIBRARIES,
        TENSORRT_PROVIDER: (
            *_CUDA_LIBRARIES,
            *(
                Library(name=name, what="TensorRT 10", cure=INSTALL_CURES[TENSORRT_PROVIDER])
                for name in _TENSORRT_LIBRARIES
            ),
        ),
    }
)
"""What each provider needs beside ONNX Runtime's own files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryCheck:
    """A library and whether it loads here."""

    library: Library
    loads: bool


@cache
def preload_libraries() -> None:
    """Load the CUDA and TensorRT libraries that were installed as Python packages, which no loader finds by itself."""
    if read_cuda_version() is None:
        return
    # What is missing it prints, and goes on; explain_failure says it in order.
    with redirect_stdout(io.StringIO()):
        import_module("onnxruntime").preload_dlls()
    spec = find_spec("tensorrt_libs")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        for name in _TENSORRT_LIBRARIES:
            _loads(str(Path(folder) / name), ctypes.CDLL)


def read_cuda_version() -> str | None:
    """Return the version of CUDA that the installed ONNX Runtime was built with; None for a build without it."""
    try:
        info = import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        return None
    version = getattr(info, "cuda_version", None)
    return str(version) if version else None


def check_libraries(
    provider: str, *, load: Callable[[str], object] = ctypes.CDLL, cuda_version: str | None = None
) -> tuple[LibraryCheck, ...]:
    """Try each library of a provider.

    Args:
        provider: Full name.
        load: Loads a library by its file's name, or raises OSError.
        cuda_version: Of ONNX Runtime; None asks the installed one.
    """
    major = (cuda_version or read_cuda_version() or _DEFAULT_CUDA).split(".", maxsplit=1)[0]
    checks = []
    for row in LIBRARIES.get(provider, ()):
        library = replace(row, name=row.name.format(cuda=major), what=row.what.format(cuda=major))
        checks.append(LibraryCheck(library=library, loads=_loads(library.name, load)))
    return tuple(checks)


def explain_failure(provider: str, message: str = "", *, checks: tuple[LibraryCheck, ...] | None = None) -> str:
    """Say why a provider does not load and what to do.

    Args:
        provider: Full name.
        message: What ONNX Runtime said of it, if it did.
        checks: Its libraries; None tries them now.
    """
    tried = check_libraries(provider) if checks is None else checks
    missing = [check.library for check in tried if not check.loads and check.library.required]
    if missing:
        return "; ".join(f"{library.name} ({library.what}) is missing: {library.cure}" for library in missing)
    named = _MISSING.search(message)
    if named is not None:
        return f"{named.group(1)} is missing: {INSTALL_CURES.get(provider, 'install it')}"
    said = (
        message.strip().splitlines()[0] if message.strip() else "its libraries load, so its device or driver does not"
    )
    return f"{said}; compare `nvidia-smi` with `poolgraph doctor`"


def is_provider_failure(message: str) -> bool:
    """Whether an error of ONNX Runtime's is about its provider or the device, not about the graph."""
    lowered = message.lower()
    return any(words in lowered for words in _PROVIDER_FAILURES)


def _loads(name: str, load: Callable[[str], object]) -> bool:
    try:
        load(name)
    except OSError:
        return False
    return True
