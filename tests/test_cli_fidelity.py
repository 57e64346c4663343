"""``poolgraph verify`` on artifacts of two precisions, and on those that have nothing to compare."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from coarse_variant import add_coarse_variant
from native_graphs import FLOAT32

from poolgraph.cli import main
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.graphs.artifact import open_artifact, record_files, save_manifest

WORDS = [word for sentence in PROBE_SENTENCES[:6] for word in sentence.split()]
TEXTS = [" ".join(WORDS[number : number + 1 + number % 7]) for number in range(25)]
"""Far enough from each other that float32 cannot exchange the ranks of two scores."""
RETRIEVAL = {"top-10 overlap", "Spearman"}
MEASURES = {
    "embedder": {"mean cosine", "lowest cosine"} | RETRIEVAL,
    "colbert": RETRIEVAL,
    "reranker": {"same best document", "Spearman", "largest difference"},
    "classifier": {"same label", "Spearman", "largest difference"},
    "ner": {"same label", "Spearman", "largest difference"},
    "reward": {"Spearman", "largest difference"},
    "process-reward": {"same label", "Spearman", "largest difference"},
}


@pytest.fixture
def coarse(task_artifact, tmp_path):
    """Return a function from a task's name to an artifact of two precisions."""
    return lambda name, **options: add_coarse_variant(task_artifact(name), tmp_path / name, **options)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_a_corpus_of_the_users(coarse, corpus, capsys, name):
    assert main(["verify", str(coarse(name)), "--corpus", str(corpus), "--field", "body", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    fidelity = report["fidelity"]
    assert {row["measure"] for row in fidelity["rows"]} == MEASURES[name]
    assert all(row["variant"] == "cpu_int8" and np.isfinite(row["value"]) for row in fidelity["rows"])
    assert {row["value"] for row in fidelity["rows"]} - {0.0, 1.0}
    assert fidelity["reference"] == FLOAT32[0]
    assert fidelity["num_queries"] in (0, 4)
    assert report["rows"]


@pytest.mark.slow
def test_the_shipped_corpus(coarse, capsys):
    assert main(["verify", str(coarse("embedder"))]) == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert lines[0].startswith(f"Fidelity of cpu_int8 against {FLOAT32[0]}: 114 queries and 210 passages that ship")
    assert lines[1].split() == ["measure", "reference", "cpu_int8"]
    assert [line.split()[-3] for line in lines[-2:]] == ["recall@10", "nDCG@10"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedder", "colbert"])
def test_the_original_model(coarse, task_artifact, corpus, capsys, name):
    checkpoint = task_artifact(name).parent / f"{name}-checkpoint"
    options = ("--checkpoint", str(checkpoint), "--corpus", str(corpus), "--field", "body", "--json")
    assert main(["verify", str(coarse(name)), *options]) == 0
    fidelity = json.loads(capsys.readouterr().out)["fidelity"]
    assert fidelity["reference"].startswith("transformers ")
    correlation = {row["variant"]: row["value"] for row in fidelity["rows"] if row["measure"] == "Spearman"}
    assert correlation[FLOAT32[0]] > 0.9999
    assert 0.9 < correlation["cpu_int8"] < correlation[FLOAT32[0]]


def test_without_float32_it_says_how_to_get_it(coarse, capsys):
    assert main(["verify", str(coarse("embedder", keep_fp32=False)), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fidelity"] is None
    assert printed.err == (
        "poolgraph: fidelity: the artifact has no float32 variant that runs here to compare cpu_int8 with: "
        "give --checkpoint PATH, or export it with --precision fp32,int8\n"
    )


def test_one_precision_is_no_news_unless_a_corpus_was_given(task_artifact, corpus, capsys):
    assert main(["verify", str(task_artifact("embedder"))]) == 0
    printed = capsys.readouterr()
    assert "Fidelity" not in printed.out
    assert printed.err == ""
    assert main(["verify", str(task_artifact("embedder")), "--corpus", str(corpus), "--field", "body"]) == 0
    assert "every variant is float32" in capsys.readouterr().err


def test_wrong_answers_are_exit_code_3_and_nothing_is_compared(coarse, capsys):
    directory = coarse("embedder")
    manifest = open_artifact(directory)
    with np.load(directory / "probes.npz") as stored:
        np.savez(directory / "probes.npz", **{name: np.roll(stored[name], 1, axis=-1) for name in stored.files})
    save_manifest(directory, msgspec.structs.replace(manifest, files=record_files(directory)))
    assert main(["verify", str(directory)]) == 3
    printed = capsys.readouterr()
    assert "Fidelity" not in printed.out
    assert "checks against" in printed.err


def test_a_text_that_the_model_does_not_take_comes_after_the_checks(coarse, tmp_path, capsys, monkeypatch):
    from poolgraph.errors import InputError
    from poolgraph.runtime import fidelity_report

    def refuse(*_args):
        raise InputError("text 3 has no token")

    monkeypatch.setattr(fidelity_report, "compare_precisions", refuse)
    assert main(["verify", str(coarse("embedder"))]) == 2
    printed = capsys.readouterr()
    assert "same bits in batches" in printed.out
    assert printed.err == "poolgraph: error: text 3 has no token\n"


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], (), "own.txt holds no text"),
        (["one text"], (), "own.txt holds 1 texts that are not blank; fidelity takes at least 20"),
        (["", " "], (), "own.txt holds 0 texts that are not blank"),
        (TEXTS[:19], (), "holds 19 texts that are not blank; fidelity takes at least 20, of which every 8th"),
        (TEXTS, ("--field", "body"), "is read as txt, which has no fields"),
        (TEXTS, ("--format", "jsonl"), "line 1: not a JSON object"),
    ],
)
def test_a_corpus_that_is_none(tmp_path, capsys, texts, options, message):
    path = tmp_path / "own.txt"
    path.write_text("".join(f"{text}\n" for text in texts))
    assert main(["verify", "no-artifact", "--corpus", str(path), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_a_corpus_that_is_not_there(capsys):
    assert main(["verify", "no-artifact", "--corpus", "nowhere.txt"]) == 2
    assert capsys.readouterr().err == "poolgraph: error: cannot read nowhere.txt: No such file or directory\n"


@pytest.mark.parametrize("option", ["--field", "--format"])
def test_options_of_a_corpus_need_one(capsys, option):
    assert main(["verify", "no-artifact", option, "txt"]) == 2
    assert f"{option} is about the file of --corpus" in capsys.readouterr().err
