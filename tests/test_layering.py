"""The rooms' layering: module-level imports go one way, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

ROOMS = {
    "": REPOSITORY / "src" / "poolgraph",
    "graphs": REPOSITORY / "graphs",
    "poolers": REPOSITORY / "poolers",
    "export": REPOSITORY / "export",
    "runtime": REPOSITORY / "runtime",
    "serving": REPOSITORY / "serving",
}

MAY_IMPORT = {
    "": {""},
    "graphs": {"", "graphs"},
    "poolers": {"", "poolers"},
    "runtime": {"", "graphs", "runtime"},
    "export": {"", "graphs", "poolers", "runtime", "export"},
    "serving": {"", "graphs", "runtime", "serving"},
}
"""root < graphs < runtime < serving; root < poolers < export; graphs, runtime < export."""

HEAVY = {
    "torch": {"export", "poolers"},
    "transformers": {"export", "poolers"},
    "safetensors": {"export"},
    "optimum": {"export"},
    "huggingface_hub": {"export", "runtime"},
    "onnx": {"graphs", "export"},
    "onnx_ir": {"graphs", "export"},
    "onnxscript": {"graphs", "export"},
    "onnxruntime": {"runtime"},
    "sentence_transformers": {"export"},
    "openvino": {"runtime"},
    "matplotlib": {"runtime"},
    "fastapi": {"serving"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
    "opentelemetry": {"serving"},
    "orjson": {"serving"},
    "aiohttp": {"serving"},
}
"""Library to the rooms that may import it, inside functions too."""

RUNTIME_READS = ("manifest.py", "artifact.py", "probe_files.py")
"""Files of graphs/ that the runtime reads."""

FORBIDDEN_AT_RUN_TIME = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")


def python_files() -> list[tuple[str, Path]]:
    return [(room, file) for room, folder in ROOMS.items() for file in sorted(folder.glob("*.py"))]


def named(node: ast.AST) -> Iterator[str]:
    """Modules that an import statement may load; of ``from a import b``, both ``a`` and ``a.b``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are always absolute"
        assert node.module is not None
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that importing a module runs: all but the bodies of functions and what is for type checkers alone."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from [other, *module_level(other)]
            continue
        yield child
        yield from module_level(child)


@cache
def imports(file: Path, *, everywhere: bool) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else module_level(tree)
    return frozenset(name for node in nodes for name in named(node))


def room_of(module: str) -> str | None:
    """The room of a module of ours, "" for the root, None for another package's."""
    parts = module.split(".")
    if parts[0] != "poolgraph":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def test_every_room_has_its_row() -> None:
    assert set(ROOMS) == set(MAY_IMPORT)
    assert all(folder.is_dir() for folder in ROOMS.values())
    assert sum(1 for _ in python_files()) > 50


@pytest.mark.parametrize("room", ROOMS)
def test_module_level_imports_go_one_way(room: str) -> None:
    wrong = [
        f"{file.relative_to(REPOSITORY)} imports {module}"
        for file in sorted(ROOMS[room].glob("*.py"))
        for module in imports(file, everywhere=False)
        if (target := room_of(module)) is not None and target not in MAY_IMPORT[room]
    ]
    assert wrong == []


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_stay_in_their_rooms(library: str) -> None:
    users = {
        room
        for room, file in python_files()
        for name in imports(file, everywhere=True)
        if name.split(".")[0] == library
    }
    assert users <= HEAVY[library]


@pytest.mark.parametrize("name", RUNTIME_READS)
def test_what_the_runtime_reads_is_light(name: str) -> None:
    light = {*sys.stdlib_module_names, "msgspec", "poolgraph"} | ({"numpy"} if name == "probe_files.py" else set())
    file = ROOMS["graphs"] / name
    assert {module.split(".")[0] for module in imports(file, everywhere=True)} <= light
    own = {module for module in imports(file, everywhere=True) if room_of(module) == "graphs"}
    assert {module.split(".")[2] for module in own} <= {"manifest", "artifact"}


def test_the_runtime_reads_nothing_else_of_graphs() -> None:
    readable = {name.removesuffix(".py") for name in RUNTIME_READS}
    for room in ("runtime", "serving"):
        for file in ROOMS[room].glob("*.py"):
            used = {m.split(".")[2] for m in imports(file, everywhere=True) if m.startswith("poolgraph.graphs.")}
            assert used <= readable, file.name


def test_the_packages_of_the_rooms_import_nothing() -> None:
    for room, folder in ROOMS.items():
        if room:
            assert imports(folder / "__init__.py", everywhere=True) == set(), room
    assert (ROOMS["graphs"] / "__init__.py").read_bytes() == b""


def test_the_walk_sees_what_it_must(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "try:\n    import onnx.numpy_helper\nexcept ImportError:\n    pass\n"
        "class A:\n    from poolgraph.export import exporter\n    def f(self):\n        import transformers\n"
        "def g():\n    import onnxruntime\n"
    )
    found = imports(file, everywhere=False)
    assert {"onnx.numpy_helper", "poolgraph.export.exporter"} <= found
    assert not {"torch", "transformers", "onnxruntime"} & found
    assert {"torch", "transformers", "onnxruntime"} <= imports(file, everywhere=True)


# --- what really is loaded


def run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


EMBED = f"""
import sys
from poolgraph import LLM, PoolingModel
with PoolingModel.load(sys.argv[1]) as model:
    assert model.embed(["a text", "another one"]).shape == (2, 384)
    assert len(model.token_embed(["a text"])) == 1
assert len(LLM(sys.argv[1]).embed(["a text"])) == 1
print(sorted(set(sys.modules) & set({FORBIDDEN_AT_RUN_TIME!r})))
"""


def test_embedding_from_an_artifact_needs_no_torch(minilm_artifact: Path) -> None:
    assert run(EMBED, str(minilm_artifact)) == "[]"


def test_importing_the_package_loads_no_room_and_no_heavy_library() -> None:
    heavy = [*HEAVY, "numpy", "tokenizers", "msgspec", "tqdm"]
    code = "import sys, poolgraph; dir(poolgraph); print([m for m in sys.modules if m.split('.')[0] in {}])"
    assert run(code.format(heavy)) == "[]"
    assert run("import sys, poolgraph; print([m for m in sys.modules if m.startswith('poolgraph.')])") == "[]"


def test_importing_the_package_takes_under_60_ms() -> None:
    code = "import time; start = time.perf_counter(); import poolgraph; print(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(5)) < 0.060


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = f"import sys, poolgraph.cli; print(sorted(set(sys.modules) & set({[*HEAVY, 'numpy']!r})))"
    assert run(code) == "[]"
