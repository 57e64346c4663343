"""The table of an inference-free SPLADE as the runtime reads it: what is no table is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_artifact import write_artifact

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest, StaticQuery
from poolgraph.runtime.static_query import (
    STATIC_QUERY_FILE,
    choose_route,
    find_limit,
    load_static_weights,
    name_side,
    resolve_route,
    weigh_tokens,
)

SIZE = 6
RECORD = StaticQuery(file=STATIC_QUERY_FILE, max_tokens=9)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of a model with a table."""
    found = open_artifact(write_artifact(tmp_path / "artifact"))
    pooler = msgspec.structs.replace(found.pooler, embedding_size=SIZE)
    return msgspec.structs.replace(found, pooler=pooler, static_query=RECORD)


def test_a_table_is_read_as_it_was_written(tmp_path: Path, manifest: Manifest) -> None:
    weights = np.linspace(-1, 1, SIZE, dtype=np.float32)
    np.save(tmp_path / STATIC_QUERY_FILE, weights)
    found = load_static_weights(tmp_path, manifest)
    assert found is not None
    assert np.array_equal(found, weights)
    assert load_static_weights(tmp_path, msgspec.structs.replace(manifest, static_query=None)) is None


@pytest.mark.parametrize(
    "table",
    [
        np.zeros(SIZE + 1, dtype=np.float32),
        np.zeros((1, SIZE), dtype=np.float32),
        np.zeros(SIZE),
        np.full(SIZE, np.nan, dtype=np.float32),
        np.full(SIZE, np.inf, dtype=np.float32),
    ],
    ids=["longer", "two axes", "float64", "NaN", "infinite"],
)
def test_another_array_is_no_table(tmp_path: Path, manifest: Manifest, table: np.ndarray) -> None:
    np.save(tmp_path / STATIC_QUERY_FILE, table)
    with pytest.raises(ArtifactError, match=r"must hold finite float32 of shape \(6,\)"):
        load_static_weights(tmp_path, manifest)


def test_what_is_no_array_is_no_table(tmp_path: Path, manifest: Manifest) -> None:
    file = tmp_path / STATIC_QUERY_FILE
    for content in (None, b"", b"\x93NUMPY", b"not an array"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read as the weights of queries"):
            load_static_weights(tmp_path, manifest)
    np.save(file, np.array([print] * SIZE, dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="cannot be read as the weights of queries"):
        load_static_weights(tmp_path, manifest)


def test_routes(manifest: Manifest) -> None:
    assert resolve_route(manifest, "query") == "query"
    with pytest.raises(InputError, match="has no default route"):
        resolve_route(manifest, None)
    with pytest.raises(InputError, match="must be one of"):
        resolve_route(manifest, "both")
    default = msgspec.structs.replace(manifest, static_query=msgspec.structs.replace(RECORD, default_route="query"))
    assert (resolve_route(default, None), resolve_route(default, "document")) == ("query", "document")
    assert (find_limit(default, None), find_limit(default, "document"), find_limit(manifest, None)) == (9, None, None)
    assert (choose_route(default, None), choose_route(default, "document")) == ("query", "document")
    assert (choose_route(manifest, None), choose_route(manifest, "query")) == ("document", "query")
    plain = msgspec.structs.replace(manifest, static_query=None)
    assert choose_route(plain, None) is None
    assert [name_side(plain, None, "query"), name_side(manifest, None, "odd"), name_side(manifest, None, None)] == [
        None
    ] * 3
    assert [name_side(manifest, side, "query") for side in (None, "document")] == ["query", "document"]
    assert (resolve_route(plain, None), find_limit(plain, "query")) == (None, None)
    with pytest.raises(InputError, match="leave out side"):
        resolve_route(plain, "query")


def test_each_token_counts_once_and_weights_of_zero_are_left_out() -> None:
    weights = np.array([0.5, 0, -2, 1], dtype=np.float32)
    found = weigh_tokens(np.array([3, 2, 3, 1, 2]), weights)
    assert (found.indices.tolist(), found.values.tolist(), found.size) == ([2, 3], [-2.0, 1.0], 4)
    assert weigh_tokens(np.array([], dtype=np.int64), weights).indices.tolist() == []
