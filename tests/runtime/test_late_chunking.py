import json

import numpy as np
import pytest

from poolgraph.errors import ArtifactError, InputError
from poolgraph.runtime.late_chunking import Chunk, average_chunks, check_late_chunking, plan_chunks


@pytest.mark.parametrize(
    ("num_tokens", "size", "ranges"),
    [
        (4, 2, [(0, 2), (2, 4)]),
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (3, 9, [(0, 3)]),
        (2, 1, [(0, 1), (1, 2)]),
    ],
)
def test_chunks_cover_the_text(num_tokens, size, ranges):
    plan = plan_chunks(num_tokens, size)
    assert [chunk.token_range for chunk in plan.chunks] == ranges
    assert (plan.chunk_size, plan.input_tokens, plan.strategy) == (size, num_tokens, "fixed_tokens")
    assert {chunk.char_range for chunk in plan.chunks} == {None}


def test_a_chunk_spans_the_characters_of_its_tokens():
    plan = plan_chunks(5, 2, [(0, 0), (0, 1), (2, 3), (4, 9), (0, 0)])
    assert plan.chunks == (
        Chunk(token_range=(0, 2), char_range=(0, 1)),
        Chunk(token_range=(2, 4), char_range=(2, 9)),
        Chunk(token_range=(4, 5), char_range=None),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_means_are_those_of_numpy(size):
    rows = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    expected = [rows[start : start + size].astype(np.float64).mean(0) for start in range(0, 7, size)]
    means = average_chunks(rows, size)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, expected, rtol=1e-6)


@pytest.mark.parametrize("kinds", [None, ["Transformer", "Pooling", "Normalize"]])
def test_without_a_head_rows_may_be_averaged(tmp_path, kinds):
    write_modules(tmp_path, kinds)
    check_late_chunking(tmp_path)


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm"])
def test_a_head_forbids_it(tmp_path, kind):
    write_modules(tmp_path, ["Transformer", "Pooling", kind, "Normalize"])
    with pytest.raises(
        InputError, match=f"late chunking averages the rows before the head, but {kind} of modules.json"
    ):
        check_late_chunking(tmp_path)


def test_modules_that_cannot_be_read_are_an_error_of_the_artifact(tmp_path):
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"modules\.json cannot be read"):
        check_late_chunking(tmp_path)


def write_modules(folder, kinds):
    if kinds is not None:
        rows = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
        (folder / "modules.json").write_text(json.dumps(rows))
