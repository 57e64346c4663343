"""The tiny artifact of ``tiny_artifact.py`` as fixtures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_artifact import write_artifact


@pytest.fixture
def make_artifact(tmp_path) -> Callable[..., Path]:
    """Build a tiny artifact; keywords replace the manifest's fields."""

    def make(*, name: str = "artifact", **options) -> Path:
        return write_artifact(tmp_path / name, **options)

    return make


@pytest.fixture
def artifact(make_artifact) -> Path:
    """The tiny artifact as it comes."""
    return make_artifact()
