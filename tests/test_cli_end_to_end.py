"""The real commands on the real checkpoint, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from poolgraph import PoolingModel
from poolgraph.cli import main
from poolgraph.graphs.artifact import open_artifact, record_files, save_manifest

pytestmark = pytest.mark.slow

TEXTS = [
    "The cat sleeps on the warm roof.",
    "A kitten naps on top of the house.",
    "Interest rates rose by half a percent.",
    "",
    "Ein Satz auf Deutsch, mit Umlauten: äöü",
]


def command(*arguments):
    return [sys.executable, "-m", "poolgraph.cli", *map(str, arguments)]


def run(*arguments, stdin=""):
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture
def linked_artifact(minilm_artifact, tmp_path):
    """The artifact under another name, whose files may be replaced one by one."""
    return shutil.copytree(minilm_artifact, tmp_path / "linked", copy_function=os.link)


@pytest.fixture(scope="module")
def expected(minilm_artifact):
    with PoolingModel.load(minilm_artifact) as model:
        return model.embed(TEXTS)


def test_every_input_gives_the_same_vectors(minilm_artifact, tmp_path, expected):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    (tmp_path / "in.csv").write_text("id,body\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS)))
    for name, field in (("in.txt", []), ("in.jsonl", ["--field", "body"]), ("in.csv", ["--field", "body"])):
        output = tmp_path / f"{name}.npy"
        assert main(["embed", str(minilm_artifact), str(tmp_path / name), "-o", str(output), *field]) == 0
        np.testing.assert_array_equal(np.load(output, mmap_mode="r"), expected)


def test_the_vectors_mean_something(expected):
    similarity = expected @ expected.T
    assert similarity[0, 1] > 0.5
    assert similarity[0, 2] < 0.2


def test_a_pipe_of_texts_becomes_json_lines(minilm_artifact, expected):
    done = run("embed", minilm_artifact, "-", stdin="\n".join(TEXTS))
    assert (done.returncode, done.stderr) == (0, "")
    vectors = [json.loads(line)["embedding"] for line in done.stdout.splitlines()]
    np.testing.assert_array_equal(np.array(vectors, dtype=np.float32), expected)


def test_killed_and_resumed(minilm_artifact, tmp_path):
    source, output, whole = tmp_path / "in.txt", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    source.write_text("".join(f"word{number % 977} {number}\n" for number in range(3000)))
    child = subprocess.Popen(command("embed", minilm_artifact, source, "-o", output), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / f"{output.name}.state.json").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not output.exists()
    refused = run("embed", minilm_artifact, source, "-o", output)
    assert refused.returncode == 2
    assert "give --resume to continue" in refused.stderr
    resumed = run("embed", minilm_artifact, source, "-o", output, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)["summary"]
    assert summary["num_rows"] == 3000
    assert summary["num_resumed"] == 2048
    assert main(["embed", str(minilm_artifact), str(source), "-o", str(whole)]) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.txt", output.name, whole.name])
    assert pq.read_metadata(output).num_rows == 3000


def test_a_text_that_is_too_long_is_refused_or_cut(minilm_artifact, tmp_path):
    (tmp_path / "in.txt").write_text("short\n" + "word " * 400 + "\n")
    refused = run("embed", minilm_artifact, tmp_path / "in.txt", "-o", tmp_path / "out.npy")
    assert refused.returncode == 2
    assert "256" in refused.stderr
    assert "Traceback" not in refused.stderr
    cut = run("embed", minilm_artifact, tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--truncate")
    assert cut.returncode == 0
    assert cut.stderr == "poolgraph: warning: 1 of 2 texts were longer than 256 tokens and were cut\n"
    assert np.load(tmp_path / "out.npy").shape == (2, 384)


@pytest.mark.parametrize(
    "options", [["--prompt-name", "absent"], ["--dimensions", "64"], ["--provider", "abacus"], ["--threads", "0"]]
)
def test_wrong_options_are_errors_without_traceback(minilm_artifact, tmp_path, capsys, options):
    (tmp_path / "in.txt").write_text("text\n")
    assert main(["embed", str(minilm_artifact), str(tmp_path / "in.txt"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("poolgraph: error: ")
    assert "Traceback" not in error


def test_inspect(minilm_artifact, capsys):
    assert main(["inspect", str(minilm_artifact)]) == 0
    text = capsys.readouterr().out
    for part in ("architecture  BertModel", "mean, normalized", "256 tokens a text", "cpu_fp32", "onnx/model.onnx"):
        assert part in text
    assert main(["inspect", str(minilm_artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pooler"]["embedding_size"] == 384


def test_verify(linked_artifact, capsys):
    assert main(["verify", str(linked_artifact)]) == 0
    table = capsys.readouterr().out
    assert "same bits in batches" in table
    assert "NO" not in table


def test_verify_of_wrong_answers_is_exit_code_3(task_artifact, tmp_path, capsys):
    wrong = shutil.copytree(task_artifact("embedder"), tmp_path / "wrong")
    replace_probes(wrong)
    capsys.readouterr()  # what the export printed, where this is the first to ask for the artifact
    assert main(["verify", str(wrong)]) == 3
    printed = capsys.readouterr()
    assert "NO (needs 0.99999" in printed.out
    assert printed.err.startswith("poolgraph: error: ")


def replace_probes(artifact):
    """Store other reference answers, and their hash in the manifest as if they had always been there."""
    manifest, path = open_artifact(artifact), artifact / "probes.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    path.unlink()
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    assert floats
    np.savez(path, **arrays | {name: np.roll(array, 1, axis=-1) for name, array in floats.items()})
    save_manifest(artifact, msgspec.structs.replace(manifest, files=record_files(artifact)))


def test_a_damaged_artifact_is_exit_code_2(linked_artifact, tmp_path, capsys):
    graph = linked_artifact / "onnx" / "model_cpu_fp32.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.unlink()
    graph.write_bytes(content)
    (tmp_path / "in.txt").write_text("text\n")
    for argv in (["embed", str(linked_artifact), str(tmp_path / "in.txt")], ["verify", str(linked_artifact)]):
        assert main(argv) == 2
        assert "model_cpu_fp32.onnx" in capsys.readouterr().err


def test_export_refuses_an_artifact_that_is_there(minilm_artifact, minilm_checkpoint, capsys):
    assert main(["export", str(minilm_checkpoint), "-o", str(minilm_artifact)]) == 2
    assert "--force" in capsys.readouterr().err
    open_artifact(minilm_artifact, check_hashes="all")
