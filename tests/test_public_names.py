"""The public names: what ``__all__`` says is what resolves."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import poolgraph


def test_all_is_what_resolves() -> None:
    assert sorted(poolgraph.__all__) == sorted(poolgraph._PUBLIC)
    assert len(set(poolgraph.__all__)) == len(poolgraph.__all__)
    assert dir(poolgraph) == sorted([*poolgraph.__all__, "__version__"])


@pytest.mark.parametrize("name", poolgraph.__all__)
def test_name_resolves_to_what_its_module_defines(name: str) -> None:
    found = getattr(poolgraph, name)
    assert found.__name__ == name
    assert found.__module__ == poolgraph._PUBLIC[name]
    assert inspect.getdoc(found)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(str(poolgraph.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == poolgraph._PUBLIC


def test_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'poolgraph' has no attribute 'Model'; it has \['ClassificationRequestOutput', "
    ):
        poolgraph.Model  # noqa: B018


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from poolgraph import *", names)
    assert set(poolgraph.__all__) <= set(names)
