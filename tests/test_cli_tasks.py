"""The commands over files beside embed: options, inputs, outputs and tables."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_embedder import LABELS, FakeModel, make_score

from poolgraph.cli import main
from poolgraph.cli_options import ENCODE_TASKS, STRATEGIES
from poolgraph.graphs.manifest import Scoring
from poolgraph.runtime import entities, file_tasks
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.score_template import TEMPLATES, resolve_template


@pytest.fixture
def model(monkeypatch):
    """A model that does everything, in the place of any that is loaded."""
    fake = FakeModel(scoring=Scoring(kind="cross_encoder"))
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: fake)
    return fake


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("first text\nAnn in Rome\n")
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a b", "document": "a"}\n{"query": "a b", "document": "b a"}\n')
    return str(path)


@pytest.fixture
def rankings(tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text('{"query": "a b", "documents": ["a", "b a"]}\n{"query": "c", "documents": ["d", "c", "e"]}\n')
    return str(path)


def read_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_choices_are_the_runtimes():
    assert set(ENCODE_TASKS) == set(file_tasks.ENCODE_TASKS)
    assert STRATEGIES == entities.AGGREGATION_STRATEGIES


def test_every_option_is_one_of_its_task():
    from poolgraph.cli_tasks import FILE_COMMANDS

    for command in FILE_COMMANDS:
        if command.name == "encode":
            rows = [*file_tasks.ENCODE_TASKS.values(), file_tasks.ENTITIES]
            assert set(command.options) == {option for row in rows for option in row.options}
        elif command.name == "embed":
            rows = [file_tasks.FILE_TASKS["embed"], file_tasks.FILE_TASKS["embed_sparse"]]
            assert set(command.options) == {option for row in rows for option in row.options}
        else:
            assert set(command.options) == set(file_tasks.FILE_TASKS[command.name].options)


def test_what_is_said_of_loading_reaches_the_model(monkeypatch, texts, tmp_path):
    def load(path, *, on_warm_up, **options):
        given.append(options)
        return FakeModel(scoring=None)

    given = []
    monkeypatch.setattr(PoolingModel, "load", load)
    out = ["-o", str(tmp_path / "out.npy"), "--force"]
    assert main(["embed", "m", texts, *out]) == 0
    options = ["--provider", "cuda", "--variant", "cuda_fp16", "--threads", "1", "--fallback", "--allow-unverified"]
    assert main(["embed", "m", texts, *out, *options]) == 0
    assert given == [
        {},
        {"provider": "cuda", "variant": "cuda_fp16", "threads": 1, "fallback": True, "allow_unverified": True},
    ]


def test_classify(model, texts, tmp_path, capsys):
    assert main(["classify", "m", texts, "-o", str(tmp_path / "out.jsonl"), "--no-activation", "--truncate"]) == 0
    rows = read_lines((tmp_path / "out.jsonl").read_text())
    assert {row["label"] for row in rows} <= set(LABELS)
    assert model.calls[0][1] == {"use_activation": False, "truncate": True}
    assert capsys.readouterr().out.startswith("2 texts in 0.")


def test_score(model, pairs, tmp_path, capsys):
    argv = ["score", "m", pairs, "-o", str(tmp_path / "out.npy"), "--instruction", "rank", "--max-tokens-per-query"]
    argv += ["4", "--max-tokens-per-doc", "0", "--score-template", "plain", "--plain", "--prompt-name", "swim"]
    assert main(argv) == 0
    scores = [make_score("a b", "a"), make_score("a b", "b a")]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.array(scores, dtype=np.float32))
    assert capsys.readouterr().out.startswith("2 pairs in 0.")
    assert model.calls[0][1] == {
        "prompt_name": "swim",
        "prompt": None,
        "instruction": "rank",
        "template": resolve_template("plain").source,
        "use_activation": None,
        "max_tokens_per_query": 4,
        "max_tokens_per_doc": 0,
        "plain": True,
        "truncate": False,
    }


def test_fields_of_pairs(model, tmp_path):
    (tmp_path / "in.csv").write_text("title,question,body\nt,a b,b a\n")
    argv = ["score", "m", str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.npy")]
    assert main([*argv, "--query-field", "question", "--document-field", "body"]) == 0
    assert model.calls[0][0] == [("a b", "b a")]


def test_a_template_file_is_its_text(model, pairs, tmp_path, capsys):
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ query }} D: {{ document }}")
    assert main(["score", "m", pairs, "--score-template", str(path)]) == 0
    assert model.calls[0][1]["template"] == path.read_text()
    assert main(["score", "m", pairs, "--score-template", "absent.jinja"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in TEMPLATES)
    assert len(model.calls) == 1


def test_a_template_that_changed_is_not_continued(model, pairs, tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ query }} D: {{ document }}")
    argv = ["score", "m", pairs, "--score-template", str(path), "-o", str(tmp_path / "out.jsonl")]
    from poolgraph.runtime.file_job import answer_file

    monkeypatch.setitem(answer_file.__kwdefaults__, "chunk_size", 1)
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: Failing(scoring=Scoring(kind="cross_encoder")))
    assert main(argv) == 1
    path.write_text("D: {{ document }} Q: {{ query }}")
    assert main([*argv, "--resume"]) == 2
    assert "template was 'Q: " in capsys.readouterr().err


class Failing(FakeModel):
    """Scores one chunk."""

    def score(self, queries, documents, **options):
        if self.calls:
            raise RuntimeError("power cut")
        return super().score(queries, documents, **options)


def test_rerank_of_a_file_of_queries(model, rankings, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert main(["rerank", "m", rankings, "-o", str(output), "--top-n", "1"]) == 0
    rows = read_lines(output.read_text())
    assert [(row["query"], [result["text"] for result in row["results"]]) for row in rows] == [
        ("a b", ["b a"]),
        ("c", ["c"]),
    ]
    assert capsys.readouterr().out.startswith("2 queries in ")
    assert main(["rerank", "m", rankings, "-o", str(tmp_path / "out.parquet"), "--no-text"]) == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["index", "results"]


def test_rerank_for_one_query_prints_a_table_on_a_terminal(model, tmp_path, monkeypatch, capfd):
    (tmp_path / "in.txt").write_text("x\na b\n" + "b long " * 30 + "\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["rerank", "m", str(tmp_path / "in.txt"), "--query", "a b", "--top-n", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "index", "score", "document"]
    assert lines[2].split() == ["1", "1", "2.0030", "a", "b"]
    assert lines[3].startswith("   2      2  1.2100  b long b long")
    assert lines[3].endswith("…")
    assert len(lines) == 4


def test_the_summary_of_one_query(model, texts, tmp_path, capsys):
    assert main(["rerank", "m", texts, "--query", "a", "-o", str(tmp_path / "out.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("1 query in 0.")


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_rerank_for_one_query_into_a_pipe_is_json(model, tmp_path, capfdbinary, json_option):
    (tmp_path / "in.csv").write_text("body\nx\na b\n")
    argv = ["rerank", "m", str(tmp_path / "in.csv"), "--query", "a b", "--document-field", "body", "--no-text"]
    assert main([*argv, *json_option]) == 0
    (row,) = read_lines(capfdbinary.readouterr().out.decode())
    assert [result["index"] for result in row["results"]] == [1, 0]


def test_a_query_and_a_field_of_queries_exclude_each_other(model, texts, capsys):
    assert main(["rerank", "m", texts, "--query", "a", "--query-field", "q"]) == 2
    assert "--query and --query-field exclude each other" in capsys.readouterr().err


def test_rewards(model, texts, tmp_path):
    argv = ["reward", "m", texts, "-o", str(tmp_path / "out.jsonl"), "--step-tag-id", "5"]
    assert main([*argv, "--returned-token-ids", "7,8"]) == 0
    assert [list(row) for row in read_lines((tmp_path / "out.jsonl").read_text())] == [["index", "reward"]] * 2
    assert model.calls[0][1] == {
        "use_activation": None,
        "step_tag_id": 5,
        "returned_token_ids": [7, 8],
        "truncate": False,
    }


@pytest.mark.parametrize("task", ENCODE_TASKS)
def test_encode_to_standard_output(model, texts, task, capfdbinary):
    assert main(["encode", "m", texts, "--task", task]) == 0
    rows = read_lines(capfdbinary.readouterr().out.decode())
    assert [row["index"] for row in rows] == [0, 1]
    depth = np.ndim(rows[0]["data"])
    assert depth == {"reward": 0, "embed": 1, "classify": 1}.get(task, 2)


def test_encode_does_what_the_model_was_made_for(model, texts, capfdbinary):
    assert main(["encode", "m", texts]) == 0
    assert len(read_lines(capfdbinary.readouterr().out.decode())[0]["data"]) == len(LABELS)


@pytest.mark.parametrize(("argv", "strategy"), [(["--entities"], "simple"), (["--entities", "max"], "max")])
def test_entities(model, texts, argv, strategy, capfdbinary):
    assert main(["encode", "m", texts, *argv, "--stride", "3"]) == 0
    rows = read_lines(capfdbinary.readouterr().out.decode())
    assert [len(row["entities"]) for row in rows] == [0, 1]
    assert model.calls[0][1] == {"aggregation_strategy": strategy, "stride": 3, "truncate": False}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["encode", "m", "TEXTS", "--task", "token_embed", "-o", "out.npy"], "an npy file is one array of numbers"),
        (["encode", "m", "TEXTS", "--entities", "-o", "out.npy"], "an npy file is one array of numbers"),
        (["encode", "m", "TEXTS", "--entities", "--task", "embed"], "entities are found by token_classify"),
        (["rerank", "m", "RANKINGS", "-o", "out.npy"], "an npy file is one array of numbers"),
        (["rerank", "m", "RANKINGS", "--json"], "--json, --resume and --force need -o OUT"),
        (["score", "m", "TEXTS"], "is read as txt, which has one text a line, not query, document"),
        (["score", "m", "RANKINGS"], "no field 'document'; there are ['query', 'documents']"),
        (["rerank", "m", "PAIRS"], "no field 'documents'"),
    ],
)
def test_what_is_wrong_is_said_before_loading(monkeypatch, texts, pairs, rankings, capsys, argv, message):
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: pytest.fail("loaded"))
    files = {"TEXTS": texts, "PAIRS": pairs, "RANKINGS": rankings}
    assert main([files.get(word, word) for word in argv]) == 2
    assert message in capsys.readouterr().err


def test_an_option_that_the_task_of_encode_lacks(model, texts, capsys):
    assert main(["encode", "m", texts, "--task", "token_classify", "--dimensions", "4"]) == 2
    error = capsys.readouterr().err
    assert "token_classify takes no such option; it takes use_activation, truncate (parameter=dimensions" in error
    assert model.calls == []


def test_rewards_of_tokens_are_no_array(monkeypatch, texts, tmp_path, capsys):
    model = FakeModel(tasks=("token_classify",))
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: model)
    assert main(["reward", "m", texts, "-o", str(tmp_path / "out.npy")]) == 2
    assert "an npy file is one array of numbers" in capsys.readouterr().err
    assert model.calls == []


@pytest.mark.parametrize(
    "argv",
    [
        ["encode", "m", "in.txt", "--task", "score"],
        ["encode", "m", "in.txt", "--entities", "best"],
        ["encode", "m", "in.txt", "--returned-token-ids", "1,a"],
        ["rerank", "m", "in.txt", "--top-n", "0"],
        ["classify", "m", "in.txt", "--dimensions", "3"],
    ],
)
def test_wrong_usage_is_exit_code_2(argv, capsys):
    assert main(argv) == 2
    assert "usage: poolgraph" in capsys.readouterr().err


def test_pairs_from_standard_input(model, monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"query": "a", "document": "a"}\n')))
    assert main(["score", "m", "-", "--format", "jsonl"]) == 0
    (row,) = read_lines(capfdbinary.readouterr().out.decode())
    assert row == {"index": 0, "score": pytest.approx(make_score("a", "a"))}
