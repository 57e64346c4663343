"""The libraries of native operators that run here, and one for AMX whose instructions are emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from poolgraph.runtime import native_library
from poolgraph.runtime.cpu import has_cpu_features, read_cpu_info
from poolgraph.runtime.native_library import LIBRARIES, Library

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = Path(__file__).with_name("emulated_amx.h")
COMPILER = os.environ.get("CXX", "g++")
WITH_AVX512 = LIBRARIES["poolgraph.cpu"][0]
"""The package's own library, whose processors and options the one with emulated instructions has."""


def list_native_libraries() -> list[Library]:
    """The libraries of operators for the CPU that run here, of which the runtime takes the first."""
    features = read_cpu_info().features
    return [one for one in LIBRARIES["poolgraph.cpu"] if has_cpu_features(one, features) and one.path() is not None]


def emulates_amx() -> bool:
    """Whether the library for AVX-512 runs here, and can be compiled."""
    return WITH_AVX512 in list_native_libraries() and shutil.which(COMPILER) is not None


def name_of_library(library: Library | str) -> str:
    """Return the name of a library's module in its package, or that of a fixture."""
    return library if isinstance(library, str) else library.module.rpartition(".")[2]


def take_native_library(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    """Let the runtime take this library of operators for the CPU."""
    monkeypatch.setattr(native_library, "LIBRARIES", {**LIBRARIES, "poolgraph.cpu": (library,)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLibrary(Library):
    """A library that is no module."""

    file: Path

    def path(self) -> Path | None:
        """Return its file."""
        return self.file


def compile_emulated_amx(file: Path) -> None:
    """Compile the kernels into ``file``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules = settings["tool"]["setuptools"]["ext-modules"]
    [options] = [one["extra-compile-args"] for one in modules if one["name"] == WITH_AVX512.module]
    instructions = f'-DPOOLGRAPH_AMX_INSTRUCTIONS="{INSTRUCTIONS}"'
    source = ROOT / "runtime" / "kernels.cpp"
    subprocess.run([COMPILER, "-shared", "-fPIC", *options, instructions, str(source), "-o", str(file)], check=True)
