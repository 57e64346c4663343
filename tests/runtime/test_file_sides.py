"""Queries and documents of ColBERT from files: the vectors of ``embed_queries`` and ``embed_documents``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from poolgraph import PoolingModel
from poolgraph.cli import main
from poolgraph.errors import InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import QueryExpansion
from poolgraph.runtime.file_job import answer_file
from poolgraph.runtime.file_sources import FileSource
from poolgraph.runtime.file_tasks import ENCODE_TASKS

TEXTS = ["w7 w8", "w9", "w10 w11 w12 w13", "", "w3 w4 w5 w6 w7"]
LONG = " ".join(f"w{number}" for number in range(20, 30))

cuts_are_printed = pytest.mark.filterwarnings("always::poolgraph.errors.TruncationWarning")

Make = Callable[..., Path]


@pytest.fixture
def path(make_colbert: Make) -> Path:
    expansion = QueryExpansion(length=10, token_id=60, attend=False, strategy="fixed")
    return make_colbert(query_expansion=expansion, document_length=9, skip_token_ids=(11,), skip_in=("document",))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "in.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    return file


def encode(path: Path, texts: Path, *argv: str) -> list[np.ndarray]:
    output = texts.with_name("out.jsonl")
    assert main(["encode", str(path), str(texts), *argv, "-o", str(output), "--force"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return [np.array(row["data"], dtype=np.float32) for row in rows]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for row, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row.reshape(array.shape), array)


@pytest.mark.parametrize("argv", [(), ("--no-activation",), ("--prompt-name", "other"), ("--prompt", "w2 w2 ")])
@pytest.mark.parametrize("side", ["query", "document"])
def test_vectors_of_a_side(path: Path, texts: Path, side: str, argv: tuple[str, ...]) -> None:
    options: dict[str, object] = {"--no-activation": {"normalize": False}}.get(argv[0], {}) if argv else {}
    if len(argv) == 2:
        options = {argv[0][2:].replace("-", "_"): argv[1]}
    with PoolingModel.load(path) as model:
        of_side = {"query": model.embed_queries, "document": model.embed_documents}[side]
        expected, as_they_are = of_side(TEXTS, **options), model.token_embed(TEXTS, **options)
    found = encode(path, texts, "--side", side, *argv)
    assert_same(found, expected)
    assert any(len(one) != len(other) for one, other in zip(found, as_they_are, strict=True))
    assert_same(encode(path, texts, *argv), as_they_are)


@cuts_are_printed
def test_long_documents_are_cut_to_the_models_own_length(
    path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts.write_text(f"w7\n{LONG}\n{LONG}\n")
    with PoolingModel.load(path) as model, pytest.warns(TruncationWarning):
        expected = model.embed_documents(["w7", LONG, LONG])
    assert_same(encode(path, texts, "--side", "document"), expected)
    assert "2 of 3 texts were longer than 9 tokens and were cut" in capsys.readouterr().err


@cuts_are_printed
def test_texts_beyond_the_models_limit(make_colbert: Make, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_colbert()
    with PoolingModel.load(path) as model:
        limit = model.manifest.limits.max_model_len
    texts.write_text(f"w7\n{'w7 ' * limit}\n")
    output = texts.with_name("out.jsonl")
    assert main(["encode", str(path), str(texts), "--side", "document", "-o", str(output)]) == 2
    assert f"maximum context length is {limit} tokens" in capsys.readouterr().err
    assert len(encode(path, texts, "--side", "document", "--truncate")[1]) == limit
    assert f"1 of 2 texts were longer than {limit} tokens and were cut" in capsys.readouterr().err


def test_a_side_is_part_of_the_job(path: Path, texts: Path) -> None:
    output, source = texts.with_name("out.jsonl"), FileSource(path=str(texts))

    class Killed(Exception):
        pass

    def stop(done: int) -> None:
        if done:
            raise Killed

    task = ENCODE_TASKS["token_embed"]
    with PoolingModel.load(path) as model:
        with pytest.raises(Killed):
            answer_file(model, task, source, output, options={"side": "query"}, chunk_size=2, on_progress=stop)
        for other in ({"side": "document"}, {}):
            message = re.escape(f"cannot be resumed: side was 'query' and is {other.get('side')!r}")
            with pytest.raises(InputError, match=message):
                answer_file(model, task, source, output, options=other, chunk_size=2, resume=True)
        summary = answer_file(model, task, source, output, options={"side": "query"}, chunk_size=2, resume=True)
        expected = model.embed_queries(TEXTS)
    assert summary.num_resumed == 2
    rows = [json.loads(line)["data"] for line in output.read_text().splitlines()]
    assert_same([np.array(row, dtype=np.float32) for row in rows], expected)


def test_models_without_sides_refuse_one(artifact: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", str(artifact), str(texts), "--task", "embed", "--side", "query"]) == 2
    assert "leave out side" in capsys.readouterr().err
    with PoolingModel.load(artifact) as model, pytest.raises(TaskNotSupported, match="no late-interaction model"):
        ENCODE_TASKS["token_embed"].check(model, {"side": "query"})


def test_tasks_without_sides_refuse_one(path: Path) -> None:
    with PoolingModel.load(path) as model, pytest.raises(InputError, match="classify takes no such option") as caught:
        ENCODE_TASKS["classify"].check(model, {"side": "query"})
    assert caught.value.parameter == "side"


def test_a_prompt_that_the_model_lacks_is_refused_before_any_text(path: Path) -> None:
    with PoolingModel.load(path) as model, pytest.raises(InputError, match="'absent' is not one of"):
        ENCODE_TASKS["token_embed"].check(model, {"side": "query", "prompt_name": "absent"})
