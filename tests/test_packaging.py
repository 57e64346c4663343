"""What is installed: every room, one version, the types' marker."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shutil
import tomllib
from pathlib import Path

import poolgraph
from poolgraph.graphs.manifest import CUDA_OPERATORS, NATIVE_OPERATORS
from poolgraph.graphs.pipeline import NATIVE_INT8
from poolgraph.runtime.cpu import has_cpu_features, read_cpu_info
from poolgraph.runtime.native_library import LIBRARIES, available_operators

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]

PLUGIN = "optimum.commands.register"
"""Optimum's namespace package, to which the wheel adds one file."""

OWN = [package for package in SETUPTOOLS["packages"] if package != PLUGIN]

NOT_INSTALLED = {"tests", "benchmarks", "examples", "docs", "build", "dist"}


def folder_of(package: str) -> Path:
    return REPOSITORY / SETUPTOOLS["package-dir"][package]


def test_packages_are_the_folders_that_hold_python_files() -> None:
    top = {file.parent for file in REPOSITORY.glob("*/*.py") if file.parent.name not in NOT_INSTALLED}
    top = {folder for folder in top if not folder.name.startswith(".")}
    expected = {file.parent for folder in [*top, REPOSITORY / "src"] for file in folder.rglob("*.py")}
    assert {folder_of(package) for package in SETUPTOOLS["packages"]} == expected


def test_every_package_has_its_folder_and_its_init_file() -> None:
    assert set(SETUPTOOLS["packages"]) == set(SETUPTOOLS["package-dir"])
    for package in OWN:
        assert (folder_of(package) / "__init__.py").is_file(), package
        assert package == "poolgraph" or package == f"poolgraph.{folder_of(package).name}"


def test_every_package_is_imported_from_its_folder() -> None:
    for package in OWN:
        file = importlib.import_module(package).__file__
        assert file is not None
        assert Path(file).parent == folder_of(package), package


def test_the_folder_of_optimums_plugins_stays_a_namespace() -> None:
    assert [file.name for file in folder_of(PLUGIN).iterdir() if file.suffix == ".py"] == ["poolgraph.py"]


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == poolgraph.__version__
    assert importlib.metadata.version("poolgraph") == poolgraph.__version__


def test_the_native_operators_are_compiled_where_there_is_a_compiler() -> None:
    """They are optional for users; here nothing would else say that they no longer compile."""
    if shutil.which("c++") is None:
        return
    domains = LIBRARIES if platform.machine() == "x86_64" else ["poolgraph.cuda"]
    assert [one.module for domain in domains for one in LIBRARIES[domain] if one.path() is None] == []
    assert CUDA_OPERATORS in available_operators()
    assert (NATIVE_OPERATORS in available_operators()) == has_cpu_features(NATIVE_INT8, read_cpu_info().features)


def test_a_library_is_compiled_anew_when_a_file_of_its_changes() -> None:
    for extension in SETUPTOOLS["ext-modules"]:
        files = set(extension["sources"])
        while more := {f"runtime/{name}" for file in files for name in included(REPOSITORY / file)} - files:
            files |= more
        assert {*extension["sources"], *extension["depends"]} == files, extension["name"]


def included(file: Path) -> list[str]:
    return re.findall(r'^#include "(.+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)


def test_types_marker_is_there_and_installed() -> None:
    assert (folder_of("poolgraph") / "py.typed").is_file()
    assert "py.typed" in SETUPTOOLS["package-data"]["poolgraph"]


def test_the_support_table_is_installed() -> None:
    assert (folder_of("poolgraph.export") / "support.json").is_file()
    assert "*.json" in SETUPTOOLS["package-data"]["poolgraph.export"]


def test_command_resolves() -> None:
    module, _, name = PROJECT["project"]["scripts"]["poolgraph"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
