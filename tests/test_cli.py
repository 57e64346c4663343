"""The command line: what each sub-command calls and prints, exit codes, and errors without tracebacks."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
from fake_embedder import CHECK, EMBEDDING_SIZE, MANIFEST, FakeEmbedder, make_vector

from poolgraph import __version__
from poolgraph.cli import ARGUMENT_OPTIONS, COMMANDS, main
from poolgraph.errors import ArtifactError, VerificationError
from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import Report
from poolgraph.runtime.file_job import answer_file
from poolgraph.runtime.model import PoolingModel

HEAVY = ("numpy", "msgspec", "tokenizers", "onnxruntime", "torch", "transformers", "onnx", "tqdm")


def install(monkeypatch, name, **attributes):
    """Put a module of our own where the command line imports a room's."""
    module = ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def loads(monkeypatch):
    """Let PoolingModel.load return a fake model; the list of what it was called with."""
    calls = []

    def load(path, **options):
        calls.append((path, options))
        return FakeEmbedder()

    monkeypatch.setattr(PoolingModel, "load", load)
    return calls


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("first\nsecond\n\n")
    return path


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "artifact"
    (folder / "onnx").mkdir(parents=True)
    for name in MANIFEST.files:
        (folder / name).write_bytes(b"graph")
    save_manifest(folder, msgspec.structs.replace(MANIFEST, files=record_files(folder)))
    return folder


def run_python(code, *, stdin=""):
    return subprocess.run([sys.executable, "-c", code], input=stdin, capture_output=True, text=True, check=False)


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"poolgraph {__version__}\n"
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(command.name in text and command.help in text for command in COMMANDS)


def test_help_loads_nothing_heavy():
    done = run_python(
        f"import sys; from poolgraph.cli import main; main(['embed', '--help']); "
        f"sys.exit(','.join(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert done.stderr == "\n"
    assert "--resume" in done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["unknown"],
        ["export", "model", "another"],
        ["embed", "model"],
        ["embed", "model", "in.txt", "--resume", "--force"],
        ["embed", "model", "in.txt", "--format", "xml"],
        ["embed", "model", "in.txt", "--threads", "many"],
    ],
)
def test_wrong_usage_is_exit_code_2(argv, capsys):
    assert main(argv) == 2
    assert "usage: poolgraph" in capsys.readouterr().err


def test_an_unknown_prompt_name_is_found_before_the_texts(monkeypatch, texts, capsys):
    model = FakeEmbedder()
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: model)
    assert main(["embed", "m", str(texts), "--prompt-name", "nope"]) == 2
    assert capsys.readouterr().err == "poolgraph: error: no prompt 'nope'\n"
    assert model.calls == []


def test_embed_to_a_file(loads, texts, tmp_path, capsys):
    output = tmp_path / "out.npy"
    argv = ["embed", "acme/tiny", str(texts), "-o", str(output), "--provider", "cpu", "--precision", "fp32"]
    assert main([*argv, "--threads", "2"]) == 0
    [(name, options)] = loads
    assert callable(options.pop("on_warm_up"))
    assert (name, options) == ("acme/tiny", {"provider": "cpu", "precision": "fp32", "threads": 2})
    np.testing.assert_array_equal(np.load(output), np.stack([make_vector(text) for text in ("first", "second", "")]))
    assert capsys.readouterr().out.startswith("3 texts in 0.")


def test_embed_options_reach_the_model(monkeypatch, texts, tmp_path):
    model = FakeEmbedder()
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: model)
    argv = ["embed", "m", str(texts), "-o", str(tmp_path / "out.npy"), "--prompt-name", "query", "--prompt", "q: "]
    assert main([*argv, "--dimensions", "4", "--side", "document", "--no-normalize", "--truncate"]) == 0
    assert main(["embed", "m", str(texts), "-o", str(tmp_path / "plain.npy")]) == 0
    (_, given), (_, default) = model.calls
    unset = {
        "prompt_name": None,
        "prompt": None,
        "dimensions": None,
        "side": None,
        "normalize": None,
        "truncate": False,
    }
    assert default == unset
    chosen = {"prompt_name": "query", "prompt": "q: ", "dimensions": 4, "side": "document", "normalize": False}
    assert given == {**chosen, "truncate": True}


def test_embed_as_json(loads, texts, tmp_path, capsys):
    assert main(["embed", "m", str(texts), "-o", str(tmp_path / "out.npy"), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["path"] == str(tmp_path / "out.npy")
    assert (outcome["summary"]["num_rows"], outcome["summary"]["num_resumed"]) == (3, 0)


def test_embed_to_standard_output(loads, monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"body": "a"}\n{"body": "b"}\n')))
    assert main(["embed", "m", "-", "--format", "jsonl", "--field", "body"]) == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    np.testing.assert_array_equal(np.array(lines[1]["embedding"], dtype=np.float32), make_vector("b"))
    assert len(lines[0]["embedding"]) == EMBEDDING_SIZE


def test_embed_resumes(monkeypatch, texts, tmp_path, capsys):
    monkeypatch.setitem(answer_file.__kwdefaults__, "chunk_size", 1)
    argv = ["embed", "m", str(texts), "-o", str(tmp_path / "out.npy")]
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: FakeEmbedder(fail_at=2))
    assert main(argv) == 1
    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: FakeEmbedder())
    assert main(argv) == 2
    assert "give --resume to continue" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert capsys.readouterr().out.startswith("3 texts (2 of them before) in ")
    assert main([*argv, "--resume"]) == 2
    assert main([*argv, "--force"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--json"], "--json, --resume and --force need -o OUT"),
        (["--resume"], "--json, --resume and --force need -o OUT"),
        (["-o", "out.csv"], "answers are written as .npy, .jsonl, .parquet, not '.csv'"),
        (["--field", "text"], "is read as txt, which has no fields"),
    ],
)
def test_embed_refuses_before_loading(loads, texts, capsys, argv, message):
    assert main(["embed", "m", str(texts), *argv]) == 2
    assert message in capsys.readouterr().err
    assert loads == []


def test_a_bad_line_is_found_before_loading(loads, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' * 5000 + "{}\n")
    assert main(["embed", "m", str(path), "-o", str(tmp_path / "out.npy")]) == 2
    assert "line 5001: no field 'text'" in capsys.readouterr().err
    assert loads == []
    assert not list(tmp_path.glob("out*"))


def test_warnings_are_short_lines(monkeypatch, texts, tmp_path, capsys):
    class Cutting(FakeEmbedder):
        def embed_chunk(self, texts, **options):
            warnings.warn("1 of 3 texts were cut", UserWarning, stacklevel=2)
            return super().embed_chunk(texts, **options)

    monkeypatch.setattr(PoolingModel, "load", lambda path, **options: Cutting())
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["embed", "m", str(texts), "-o", str(tmp_path / "out.npy")]) == 0
    assert capsys.readouterr().err == "poolgraph: warning: 1 of 3 texts were cut\n"


def test_messages_advise_options_in_the_place_of_arguments(monkeypatch, texts, capsys):
    def load(path, **options):
        warnings.warn("a text is cut; pass truncate=True", stacklevel=1)
        raise ArtifactError("it does not load; choose another with provider=..., or pass fallback=True")

    monkeypatch.setattr(PoolingModel, "load", load)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["embed", "m", str(texts)]) == 2
    assert capsys.readouterr().err == (
        "poolgraph: warning: a text is cut; pass --truncate\n"
        "poolgraph: error: it does not load; choose another with --provider ..., or pass --fallback\n"
    )


def test_the_arguments_that_options_stand_for_are_in_messages():
    sources = "".join(file.read_text() for file in (Path(__file__).parents[1] / "runtime").glob("*.py"))
    usages = "".join(usage_of(command) for command in COMMANDS)
    for argument, option in ARGUMENT_OPTIONS.items():
        assert argument in sources
        assert f"[{option.partition(' ')[0]}" in usages


def usage_of(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.format_usage()


def test_inspect(artifact, capsys):
    assert main(["inspect", str(artifact)]) == 0
    assert "model         acme/tiny at main" in capsys.readouterr().out
    assert main(["inspect", str(artifact), "--json"]) == 0
    assert capsys.readouterr().out == (artifact / "poolgraph.json").read_text()


def test_inspect_nothing(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("poolgraph: error: ")


@pytest.mark.parametrize(
    ("last", "code", "text", "error"),
    [
        (
            CHECK,
            0,
            "alone     40   0.9999998   1.2e-07  yes",
            "poolgraph: fidelity: nothing to compare in dir, corpus None, checkpoint ckpt\n",
        ),
        (
            msgspec.structs.replace(CHECK, passed=False),
            3,
            "NO (needs 0.99999, 1.0e-04)",
            "poolgraph: error: 1 of 2 checks failed\n",
        ),
    ],
)
def test_verify_prints_every_row_and_fails_with_its_own_code(monkeypatch, capsys, last, code, text, error):
    calls = []

    def verify_artifact(path, *, checkpoint, on_row):
        calls.append((path, checkpoint))
        for row in (CHECK, last):
            on_row(row)
        if not last.passed:
            raise VerificationError("1 of 2 checks failed")
        return Report(reference="the reference", rows=(CHECK, last))

    def report_fidelity(path, *, corpus, checkpoint):
        return None, f"nothing to compare in {path}, corpus {corpus}, checkpoint {checkpoint}"

    install(monkeypatch, "poolgraph.runtime.verify", verify_artifact=verify_artifact)
    install(monkeypatch, "poolgraph.runtime.fidelity_report", report_fidelity=report_fidelity)
    monkeypatch.setattr("poolgraph.cli_inspect.say_unverified", lambda directory: None)
    assert main(["verify", "dir", "--checkpoint", "ckpt"]) == code
    assert calls == [(Path("dir"), "ckpt")]
    printed = capsys.readouterr()
    assert printed.out.startswith("Compared with the reference:\n")
    assert text in printed.out
    assert printed.err == error
    assert main(["verify", "dir", "--json"]) == code
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["passed"] for row in rows] == [True, last.passed]


def test_verify_errors(monkeypatch, capsys):
    def verify_artifact(path, *, checkpoint, on_row):
        raise ArtifactError(f"no artifact in {path}")

    install(monkeypatch, "poolgraph.runtime.verify", verify_artifact=verify_artifact)
    install(monkeypatch, "poolgraph.runtime.fidelity_report", report_fidelity=None)
    assert main(["verify", "dir"]) == 2
    assert capsys.readouterr().err == "poolgraph: error: no artifact in dir\n"


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    assert "CPUExecutionProvider" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["poolgraph"] == __version__


def test_without_onnxruntime_the_extra_is_named(artifact, tmp_path):
    (tmp_path / "in.txt").write_text("text\n")
    done = run_python(
        f"import sys; sys.modules['onnxruntime'] = None\nfrom poolgraph.cli import main\n"
        f"sys.exit(main(['embed', {str(artifact)!r}, {str(tmp_path / 'in.txt')!r}]))"
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "poolgraph[cpu]" in done.stderr
