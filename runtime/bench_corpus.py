"""English passages out of the docstrings of installed packages, read with ``ast``: nothing is imported or copied."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy",)
FILES_PER_PACKAGE = 150
LARGEST_FILE_BYTES = 400_000
FEWEST_WORDS = 3

_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\. |\.\. |[-=~^*+|]{3,}[-=~^*+| ]*$)")
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def read_passages(packages: Sequence[str] = PACKAGES, files_per_package: int = FILES_PER_PACKAGE) -> list[str]:
    """Return distinct passages in an order that depends on their words alone.

    The order is that of a hash, so any slice of the list is a fair sample of all packages and lengths.
    """
    passages = {
        passage
        for package in packages
        for path in _choose_files(package, files_per_package)
        for passage in _read_file(path)
        if len(passage.split()) >= FEWEST_WORDS
    }
    return sorted(passages, key=lambda passage: sha256(passage.encode()).digest())


def clean_docstring(docstring: str) -> str:
    """Return the prose of a docstring on one line, without examples, fences, directives and rulers."""
    lines = []
    in_fence = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line.lstrip().startswith("```"):
            in_fence = not in_fence
        elif not in_fence and not _NOT_PROSE.match(line):
            lines.append(line)
    return " ".join(" ".join(lines).split())


def _choose_files(package: str, count: int) -> list[Path]:
    """Return ``count`` source files of ``package``, spread over its folders by a hash of their relative paths."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; the mixed corpus is read from {', '.join(PACKAGES)}")
    root = Path(spec.submodule_search_locations[0])
    files = [path for path in root.rglob("*.py") if path.stat().st_size <= LARGEST_FILE_BYTES]
    return sorted(files, key=lambda path: sha256(path.relative_to(root).as_posix().encode()).digest())[:count]


def _read_file(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, _DOCUMENTED):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield clean_docstring(docstring)
