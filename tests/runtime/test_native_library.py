"""Which libraries of operators load, and what runs on them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from poolgraph.runtime import native_library
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.native_library import ENTRY_POINT, MODULES, VERSION, can_run, library_path


@pytest.fixture(autouse=True)
def forget():
    """What loads is asked for once; each test asks anew."""
    native_library.available_operators.cache_clear()
    yield
    native_library.available_operators.cache_clear()


def test_libraries_are_looked_for_by_their_domain(monkeypatch):
    monkeypatch.setattr(native_library, "find_spec", lambda name: SimpleNamespace(origin=f"/{name}.so"))
    for domain, module in MODULES.items():
        assert library_path(domain) == library_path(f"{domain}/2") == Path(f"/{module}.so")


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
