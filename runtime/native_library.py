"""The libraries of this package's own operators: where they are, whether they load, and what runs on them.

They are compiled when the package is installed, if there is a C++ compiler: from ``kernels.cpp`` one for each set of
instructions, from ``kernels_cuda.cpp`` one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from poolgraph.runtime.cpu import has_cpu_features, read_cpu_info


@dataclass(frozen=True, slots=True)
class Library:
    """A compiled library: its module, and the instruction sets that it was compiled for."""

    module: str
    cpu_features: tuple[str, ...] = ()

    def path(self) -> Path | None:
        """Return its file, None where it was not compiled."""
        spec = find_spec(self.module)
        return Path(spec.origin) if spec is not None and spec.origin is not None else None


LIBRARIES: Final[Mapping[str, tuple[Library, ...]]] = MappingProxyType(
    {
        "poolgraph.cpu": (
            Library("poolgraph.runtime._kernels", ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")),
            Library("poolgraph.runtime._kernels_avxvnni", ("avx_vnni", "avx2", "fma")),
            Library("poolgraph.runtime._kernels_avx2", ("avx2", "fma")),
        ),
        "poolgraph.cuda": (Library("poolgraph.runtime._kernels_cuda"),),
    }
)
"""The compiled libraries by the domain of their operators, the fastest first."""

ENTRY_POINT: Final = "RegisterCustomOps"
"""What ONNX Runtime calls in a library of operators."""

VERSION: Final = "poolgraph_operators"
"""What the library calls its operators, with the versions that it has: one compiled before a change lacks the last."""


INSTRUCTIONS: Final = "poolgraph_instructions"
"""What it calls the instruction sets that it uses where there are any, beyond those that it was compiled for."""


class Requirements(Protocol):
    """What a variant or a target needs of this machine."""

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """Instruction sets, all of them; of an entry with bars, one."""

    @property
    def operators(self) -> str | None:
        """A library of operators, None for ONNX Runtime's own alone."""


def find_library(operators: str) -> Library | None:
    """Return the fastest library of operators such as ``poolgraph.cpu/5`` that was compiled and runs here, or None."""
    features = read_cpu_info().features
    of_domain = LIBRARIES[operators.partition("/")[0]]
    return next((one for one in of_domain if has_cpu_features(one, features) and one.path() is not None), None)


def library_path(operators: str) -> Path | None:
    """Return the file of that library, None where there is none."""
    library = find_library(operators)
    return None if library is None else library.path()


@cache
def available_operators() -> tuple[str, ...]:
    """Return the libraries of operators that load here, each with its versions."""
    return tuple(version for domain in LIBRARIES for version in _versions(library_path(domain)))


def used_instructions(operators: str) -> tuple[str, ...]:
    """Return the instruction sets that a library of operators uses here, beyond those that it was compiled for."""
    return _ask_library(library_path(operators), INSTRUCTIONS)


def _versions(path: Path | None) -> tuple[str, ...]:
    return _ask_library(path, VERSION, ENTRY_POINT)


def _ask_library(path: Path | None, name: str, *others: str) -> tuple[str, ...]:
    """Return the words that a library's function answers; none where it, or one of the others, is not there."""
    try:
        library = None if path is None else ctypes.CDLL(str(path))
    except OSError:  # compiled for another machine
        return ()
    if not all(hasattr(library, one) for one in (name, *others)):
        return ()
    ask = getattr(library, name)
    ask.restype = ctypes.c_char_p
    return tuple(ask().decode().split())


def has_operators(needed: Requirements, operators: Collection[str]) -> bool:
    """Whether the libraries that load have what a variant or a target needs."""
    return needed.operators is None or needed.operators in operators


def can_run(needed: Requirements) -> bool:
    """Whether this machine runs what needs operators beside ONNX Runtime's own; what needs none is not asked more."""
    if needed.operators is None:
        return True
    return has_operators(needed, available_operators()) and has_cpu_features(needed, read_cpu_info().features)
