"""Which libraries of operators load, and what runs on them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from poolgraph.graphs.manifest import NATIVE_OPERATORS
from poolgraph.graphs.pipeline import NATIVE_FP32, NATIVE_INT8
from poolgraph.runtime import native_library
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.native_library import (
    ENTRY_POINT,
    INSTRUCTIONS,
    LIBRARIES,
    VERSION,
    can_run,
    find_library,
    library_path,
    used_instructions,
)


@pytest.fixture(autouse=True)
def forget():
    """What loads is asked for once; each test asks anew."""
    native_library.available_operators.cache_clear()
    yield
    native_library.available_operators.cache_clear()


def test_libraries_are_looked_for_by_their_domain(monkeypatch):
    every = tuple(feature for libraries in LIBRARIES.values() for one in libraries for feature in one.cpu_features)
    set_machine(monkeypatch, every, lambda name: True)
    for domain, libraries in LIBRARIES.items():
        assert library_path(domain) == library_path(f"{domain}/2") == Path(f"/{libraries[0].module}.so")


AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")
AVX2 = ("avx2", "fma")
ALL = ("_kernels", "_kernels_avxvnni", "_kernels_avx2")


@pytest.mark.parametrize(
    ("features", "compiled", "expected"),
    [
        ((*AVX512, "avx_vnni", *AVX2), ALL, "_kernels"),
        ((*AVX512, *AVX2), ALL, "_kernels"),
        ((*AVX512, *AVX2), ALL[1:], "_kernels_avx2"),
        ((*AVX512[:3], *AVX2), ALL, "_kernels_avx2"),
        ((*AVX512[:3], "avx_vnni", *AVX2), ALL, "_kernels_avxvnni"),
        (("avx_vnni", *AVX2), ALL, "_kernels_avxvnni"),
        (("avx_vnni", *AVX2), ("_kernels", "_kernels_avx2"), "_kernels_avx2"),  # a compiler that does not know it
        (("avx_vnni", *AVX2), ("_kernels",), None),
        (AVX2, ALL, "_kernels_avx2"),
        (AVX2, ALL[:2], None),
        (("avx2",), ALL, None),
        ((), ALL, None),
        ((*AVX512, *AVX2), (), None),
    ],
)
def test_the_library_is_the_processors(features, compiled, expected, monkeypatch):
    set_machine(monkeypatch, features, lambda name: name.rpartition(".")[2] in compiled)
    found, path = find_library(NATIVE_OPERATORS), library_path(NATIVE_OPERATORS)
    if expected is None:
        assert found is path is None
    else:
        assert found is not None
        assert found.module == f"poolgraph.runtime.{expected}"
        assert path == Path(f"/{found.module}.so")


def test_what_native_variants_need_is_what_their_last_library_needs():
    assert NATIVE_FP32.cpu_features == NATIVE_INT8.cpu_features == LIBRARIES["poolgraph.cpu"][-1].cpu_features


def set_machine(monkeypatch, features, is_compiled):
    monkeypatch.setattr(native_library, "read_cpu_info", lambda: CpuInfo(model="", num_cores=1, features=features))
    spec = lambda name: SimpleNamespace(origin=f"/{name}.so") if is_compiled(name) else None  # noqa: E731
    monkeypatch.setattr(native_library, "find_spec", spec)


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_nothing_that_was_not_compiled_is_available(spec, monkeypatch):
    monkeypatch.setattr(native_library, "find_spec", lambda _: spec)
    assert library_path("poolgraph.cpu") is None
    assert native_library.available_operators() == ()


def test_a_file_of_another_machine_is_not_available(tmp_path, monkeypatch):
    file = tmp_path / "kernels.so"
    file.write_bytes(b"of another machine")
    monkeypatch.setattr(native_library, "library_path", lambda _: file)
    assert native_library.available_operators() == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((ENTRY_POINT, VERSION), ("own/1", "own/2") * 2),
        ((ENTRY_POINT,), ()),
        ((VERSION,), ()),
        ((), ()),
    ],
)
def test_a_library_says_its_versions(names, expected, monkeypatch):
    functions = {ENTRY_POINT: lambda: None, VERSION: lambda: b"own/1 own/2"}
    library = SimpleNamespace(**{name: functions[name] for name in names})
    monkeypatch.setattr(native_library, "library_path", lambda _: Path("kernels.so"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert native_library.available_operators() == expected


@pytest.mark.parametrize(
    ("operators", "features", "expected"),
    [
        (None, ("avx512_bf16",), True),
        ("own/1", (), True),
        ("own/1", ("avx2",), True),
        ("own/1", ("avx512_bf16",), False),
        ("own/2", (), False),
        ("own/2", ("avx2",), False),
    ],
)
def test_what_runs_here(operators, features, expected, monkeypatch):
    """What needs no library is chosen by its instruction sets later, when it is loaded."""
    monkeypatch.setattr(native_library, "available_operators", lambda: ("own/1",))
    monkeypatch.setattr(native_library, "read_cpu_info", lambda: CpuInfo(model="", num_cores=1, features=("avx2",)))
    assert can_run(SimpleNamespace(operators=operators, cpu_features=features)) is expected


@pytest.mark.parametrize(
    ("said", "expected"), [(b"", ()), (b"amx_int8 amx_bf16", ("amx_int8", "amx_bf16")), (None, ())]
)
def test_a_library_says_what_it_uses(said, expected, monkeypatch):
    library = SimpleNamespace(**({} if said is None else {INSTRUCTIONS: lambda: said}))
    monkeypatch.setattr(native_library, "library_path", lambda _: Path("kernels.so"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert used_instructions("own/1") == expected
