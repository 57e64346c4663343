"""The tiny artifact of ``tiny_artifact.py`` as fixtures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bound_executors import build_executor
from tiny_artifact import write_artifact

from poolgraph.graphs.manifest import LateInteraction, Scoring
from poolgraph.runtime.bound_executor import BoundExecutor


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


@pytest.fixture
def make_colbert(make_artifact) -> Callable[..., Path]:
    """Build tiny ColBERT artifacts; keywords are fields of LateInteraction, or with ``manifest`` of the manifest."""

    def make(*, name: str = "colbert", manifest: dict[str, object] | None = None, **late) -> Path:
        fields = {
            "families": ("token",),
            "tasks": ("token_embed",),
            "default_task": "token_embed",
            "prompts": {"query": "w1 ", "document": "w2 ", "other": "w9 "},
            "similarity_fn_name": "maxsim",
            "scoring": Scoring(kind="late_interaction"),
            "late_interaction": LateInteraction(**late),
        }
        return make_artifact(name=name, **(fields | (manifest or {})))

    return make


@pytest.fixture
def make_executor(tmp_path) -> Iterator[Callable[..., BoundExecutor]]:
    """Build executors of buckets, closed at the end."""
    made = []

    def make(*arguments, **changes) -> BoundExecutor:
        made.append(build_executor(tmp_path, *arguments, **changes))
        return made[-1]

    yield make
    for executor in made:
        executor.close()
