"""Sizes and words: what keeps the rooms readable."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("src/poolgraph", "graphs", "poolers", "export", "runtime", "serving")
CHECKED = (*ROOMS, "tests", "benchmarks", "examples")

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files(folders: tuple[str, ...]) -> list[Path]:
    return [file for folder in folders for file in sorted((REPOSITORY / folder).rglob("*.py"))]


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions and classes with their dotted names, those within functions left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, Definition):
            yield from definitions(node, prefix)


def named_definitions(folders: tuple[str, ...]) -> Iterator[tuple[Path, str, Definition]]:
    for file in files(folders):
        for name, node in definitions(ast.parse(file.read_text(encoding="utf-8"))):
            yield file.relative_to(REPOSITORY), name, node


def test_there_is_something_to_check() -> None:
    assert len(files(ROOMS)) > 50
    assert sum(1 for _ in named_definitions(ROOMS)) > 300


def test_no_function_is_long() -> None:
    long = [
        f"{file}: {name} has {size} lines"
        for file, name, node in named_definitions(CHECKED)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_file_is_long() -> None:
    sizes = {
        file.relative_to(REPOSITORY): len(file.read_text(encoding="utf-8").splitlines()) for file in files(CHECKED)
    }
    assert {file: size for file, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_everything_public_has_a_docstring() -> None:
    missing = [
        f"{file}: {name}"
        for file, name, node in named_definitions(ROOMS)
        if not any(part.startswith("_") for part in name.split(".")) and not ast.get_docstring(node)
    ]
    assert missing == []


def test_every_file_begins_with_its_purpose() -> None:
    bare = [
        str(file.relative_to(REPOSITORY))
        for file in files(ROOMS)
        if file.name != "__init__.py" and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert bare == []


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}"
        for file in files(CHECKED)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_a_file_is_one_noun(name: str) -> None:
    assert [file for file in files(CHECKED) if file.stem == name] == []


def test_no_path_of_a_machine_is_in_a_room() -> None:
    homes = re.compile(r"(/home/|/root/|/Users/|[A-Z]:\\\\Users)")
    assert [str(file) for file in files(ROOMS) if homes.search(file.read_text(encoding="utf-8"))] == []
