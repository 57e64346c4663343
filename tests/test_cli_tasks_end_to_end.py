"""The commands over files on tiny artifacts of every kind: the answers are those of ``PoolingModel``, bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from poolgraph import PoolingModel
from poolgraph.cli import main
from poolgraph.cli_export import suggest_command
from poolgraph.graphs.artifact import open_artifact

pytestmark = pytest.mark.slow

TEXTS = ["a cat sleeps on the warm roof", "interest rates", "", "the quick brown fox jumps over the lazy dog", "a cat"]
QUERY = "who sleeps"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def run(output, *argv):
    """Run a command into ``output`` and return its rows, or the array of an npy file."""
    assert main([*map(str, argv), "-o", str(output)]) == 0
    if output.suffix == ".npy":
        return np.load(output)
    if output.suffix == ".parquet":
        return pq.read_table(output).to_pylist()
    return [json.loads(line) for line in output.read_text().splitlines()]


def assert_same(found, expected):
    """Compare rows with arrays, bit by bit."""
    assert len(found) == len(expected)
    for row, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.array(row, dtype=np.float32).reshape(np.shape(array)), array)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npy"])
def test_classify(task_artifact, texts, tmp_path, suffix):
    with PoolingModel.load(task_artifact("classifier")) as model:
        probs, logits = model.classify(TEXTS), model.classify(TEXTS, use_activation=False)
    rows = run(tmp_path / f"out{suffix}", "classify", task_artifact("classifier"), texts)
    assert_same(rows if suffix == ".npy" else [row["probs"] for row in rows], probs)
    if suffix != ".npy":
        assert [row["label"] for row in rows] == [model.labels[index] for index in probs.argmax(1)]
        assert_same([row["score"] for row in rows], probs.max(1))
    raw = run(tmp_path / f"raw{suffix}", "classify", task_artifact("classifier"), texts, "--no-activation")
    assert_same(raw if suffix == ".npy" else [row["probs"] for row in raw], logits)


@pytest.mark.parametrize("name", ["reranker", "embedder", "colbert"])
@pytest.mark.parametrize("suffix", [".jsonl", ".npy"])
def test_score_and_rerank(task_artifact, tmp_path, texts, name, suffix):
    documents = [text for text in TEXTS if text]
    with PoolingModel.load(task_artifact(name)) as model:
        scores, ranked = model.score(QUERY, documents), model.rerank(QUERY, documents, top_n=2)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("query,document\n" + "".join(f"{QUERY},{document}\n" for document in documents))
    rows = run(tmp_path / f"out{suffix}", "score", task_artifact(name), pairs)
    assert_same(rows if suffix == ".npy" else [row["score"] for row in rows], scores)

    (tmp_path / "documents.txt").write_text("\n".join(documents))
    argv = ("rerank", task_artifact(name), tmp_path / "documents.txt", "--query", QUERY, "--top-n", "2")
    (row,) = run(tmp_path / "ranked.jsonl", *argv)
    assert row["query"] == QUERY
    assert row["results"] == [{"index": one.index, "score": one.score, "text": one.text} for one in ranked]
    rankings = tmp_path / "rankings.jsonl"
    rankings.write_text(f"{json.dumps({'query': QUERY, 'documents': documents})}\n" * 2)
    both = run(tmp_path / "both.jsonl", "rerank", task_artifact(name), rankings, "--top-n", "2")
    assert [answer["results"] for answer in both] == [row["results"]] * 2


@pytest.mark.parametrize("command", ["reward", "encode"])
@pytest.mark.parametrize(("name", "suffix"), [("reward", ".npy"), ("reward", ".jsonl"), ("process-reward", ".parquet")])
def test_rewards(task_artifact, texts, tmp_path, command, name, suffix):
    with PoolingModel.load(task_artifact(name)) as model:
        rewards = model.reward([text or "x" for text in TEXTS])
    (tmp_path / "in.txt").write_text("\n".join(text or "x" for text in TEXTS))
    argv = [command, task_artifact(name), tmp_path / "in.txt", *(["--task", "reward"] if command == "encode" else [])]
    rows = run(tmp_path / f"out{suffix}", *argv)
    column = "reward" if command == "reward" else "data"
    assert_same(rows if suffix == ".npy" else [row[column] for row in rows], rewards)


def test_options_of_steps(task_artifact, texts, tmp_path):
    source = tmp_path / "one.txt"
    source.write_text("the quick brown fox")
    argv = ("reward", task_artifact("process-reward"), source, "--step-tag-id", "20", "--returned-token-ids", "9")
    with PoolingModel.load(task_artifact("process-reward")) as model:
        (expected,) = model.reward("the quick brown fox", step_tag_id=20, returned_token_ids=[9])
    (row,) = run(tmp_path / "out.jsonl", *argv)
    assert_same([row["reward"]], [expected])


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("embedder", "embed"),
        ("embedder", "token_embed"),
        ("colbert", "token_embed"),
        ("classifier", "classify"),
        ("classifier", "token_classify"),
        ("ner", "token_classify"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_encode(task_artifact, texts, tmp_path, name, task, suffix):
    with PoolingModel.load(task_artifact(name)) as model:
        expected = getattr(model, task)(TEXTS)
        default = model.manifest.default_task
    rows = run(tmp_path / f"out{suffix}", "encode", task_artifact(name), texts, "--task", task)
    assert_same([row["data"] for row in rows], expected)
    if task == default:
        plain = run(tmp_path / f"plain{suffix}", "encode", task_artifact(name), texts)
        assert plain == rows


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_entities(task_artifact, texts, tmp_path, strategy):
    with PoolingModel.load(task_artifact("ner")) as model:
        expected = model.extract_entities(TEXTS, aggregation_strategy=strategy)
    rows = run(tmp_path / "out.jsonl", "encode", task_artifact("ner"), texts, "--entities", strategy)
    assert [row["entities"] for row in rows] == [[entity.to_dict() for entity in entities] for entities in expected]
    assert any(row["entities"] for row in rows)
    assert run(tmp_path / "out.parquet", "encode", task_artifact("ner"), texts, "--entities", strategy)


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("embedder", ["classify"], "cannot classify"),
        ("embedder", ["reward"], "reward"),
        ("ner", ["embed"], "cannot embed"),
        ("ner", ["rerank", "--query", "q"], "does not support the Scoring API"),
        ("classifier", ["rerank", "--query", "q"], "Scoring API is only enabled for num_labels == 1"),
        ("embedder", ["encode", "--entities"], "cannot token_classify"),
        ("reranker", ["encode", "--task", "token_embed"], "cannot token_embed"),
        ("ner", ["reward", "--step-tag-id", "3"], "does not support ['step_tag_id']"),
        ("colbert", ["rerank", "--query", "q", "--score-template", "plain"], "template"),
    ],
)
def test_a_task_that_the_artifact_lacks_is_exit_code_2(task_artifact, texts, tmp_path, capsys, name, argv, message):
    command, *options = argv
    output = tmp_path / "out.jsonl"
    assert main([command, str(task_artifact(name)), str(texts), *options, "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("poolgraph: error: ")
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("embedder", "embed"),
        ("classifier", "classify"),
        ("reranker", "rerank"),
        ("reward", "reward"),
        ("process-reward", "reward"),
        ("ner", "encode"),
        ("colbert", "rerank"),
    ],
)
def test_the_command_that_export_names_runs(task_artifact, tmp_path, name, command):
    (tmp_path / "texts.txt").write_text("a cat\nthe quick brown fox\n")
    (tmp_path / "documents.txt").write_text("a cat\nthe quick brown fox\n")
    line = suggest_command(open_artifact(task_artifact(name)))
    assert line.split()[0] == command
    shell = f"{sys.executable} -m poolgraph.cli {line.format(path=task_artifact(name))}"
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
