"""The command ``plan``: its table, its JSON, its file and its picture, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest

from poolgraph.cli import main
from poolgraph.runtime.bucket_file import read_buckets


@pytest.fixture
def tiny(pytestconfig, task_artifact):
    return task_artifact("embedder")


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join("word " * number for number in [1, 2, 3, 3, 3, 40, 41, 3000]) + "\n")
    return file


def test_the_table(tiny, texts, capsys):
    assert main(["plan", str(texts), "--model", str(tiny), "--max-graphs", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ": 8 texts, " in lines[0]
    assert lines[0].endswith("; 1 are longer than the model's limit and count as that")
    assert lines[1].endswith(" padded buckets:")
    stop = 3 + int(lines[1].split()[0])
    assert 5 < stop <= 8
    assert lines[2].split() == ["bucket", "runs", "texts", "tokens", "padding"]
    assert sum(int(line.split()[2]) for line in lines[3:stop]) == 8
    assert lines[stop].startswith("padding where all texts are one call: ")
    assert lines[stop + 1].startswith("padding where each text comes alone: ")


def test_what_is_likely_faster_is_said_last(tiny, texts, monkeypatch, capsys):
    monkeypatch.setattr("poolgraph.runtime.bucket_report.choose_layouts", lambda *_: ("padded", "packed"))
    assert main(["plan", str(texts), "--model", str(tiny)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("by the rates of BERT-base on an H200, ")


def test_json_and_the_file_of_buckets(tiny, texts, tmp_path, capsys):
    file = tmp_path / "buckets.json"
    arguments = ["--max-batch-tokens", "2048", "--layout", "packed", "--json", "-o", str(file)]
    assert main(["plan", str(texts), "--model", str(tiny), *arguments]) == 0
    captured = capsys.readouterr()
    [report] = json.loads(captured.out)
    assert report["layout"] == "packed"
    assert "buckets.json" in captured.err
    buckets = read_buckets(file)
    assert [bucket.num_tokens for bucket in buckets] == [use["bucket"]["num_tokens"] for use in report["uses"]]
    assert report["together"]["padded_tokens"] < report["single"]["padded_tokens"]
    used = sum(use["real_tokens"] + use["padded_tokens"] for use in report["uses"])
    assert used == report["together"]["real_tokens"] + report["together"]["padded_tokens"]


def test_fields_of_other_files(tiny, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"body": "a word"}\n')
    assert main(["plan", str(file), "--model", str(tiny), "--field", "body"]) == 0
    assert ": 1 texts, 6 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(tiny, texts, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plan{suffix}"
    assert main(["plan", str(texts), "--model", str(tiny), "--plot", str(file)]) == 0
    assert file.stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "plan.txt"], "a plot is written as .png, .svg, .pdf"),
        (["-o", "missing/buckets.json"], "to write buckets.json into"),
        (["--field", "body"], "which has no fields"),
    ],
)
def test_what_is_refused(tiny, texts, options, message, capsys):
    assert main(["plan", str(texts), "--model", str(tiny), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_texts_are_not_written_over(tiny, texts, capsys):
    before = texts.read_bytes()
    assert main(["plan", str(texts), "--model", str(tiny), "-o", str(texts)]) == 2
    assert "is the input itself" in capsys.readouterr().err
    assert texts.read_bytes() == before


def test_without_matplotlib_the_cure_is_said_before_anything_is_read(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plan", str(tmp_path / "missing.txt"), "--model", str(tiny), "--plot", "plan.png"]) == 2
    assert 'pip install "poolgraph[bench]"' in capsys.readouterr().err


def test_no_artifact(texts, tmp_path, capsys):
    assert main(["plan", str(texts), "--model", str(tmp_path)]) == 2
    assert "poolgraph: error:" in capsys.readouterr().err
