"""``poolgraph export``: what it calls, what it says, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from fake_embedder import CHECK, MANIFEST

from poolgraph.cli import main
from poolgraph.cli_export import suggest_command
from poolgraph.errors import ExportError, InputError, VerificationError
from poolgraph.export.exporter import ExportResult
from poolgraph.export.support import read_support, render_text
from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import Scoring
from poolgraph.tasks import CONVERSIONS, RUNNERS

DEFAULTS = {
    "task": "auto",
    "convert": "auto",
    "runner": "auto",
    "pooler_config": None,
    "hf_overrides": None,
    "score_template": None,
    "revision": None,
    "precisions": None,
    "targets": ("cpu",),
    "min_cosine": None,
    "max_memory": None,
    "calibration": None,
    "trust_remote_code": False,
    "overwrite": False,
}


@pytest.fixture
def exports(monkeypatch, tmp_path):
    """Put an export in the place of the real one; the list of what it was called with. ``outcome`` is raised."""
    calls = []
    module = ModuleType("poolgraph.export.exporter")
    module.outcome = None

    def export_model(model, output, *, on_stage, **options):
        calls.append((model, output, options))
        on_stage("trace")
        if module.outcome is not None:
            raise module.outcome
        output.mkdir()
        save_manifest(output, msgspec.structs.replace(MANIFEST, files=record_files(output)))
        return ExportResult(path=output, report=MANIFEST.report, seconds={"trace": 1.5, "verify": 2.0})

    module.export_model = export_model
    module.calls = calls
    monkeypatch.setitem(sys.modules, "poolgraph.export.exporter", module)
    monkeypatch.setattr("poolgraph.graphs.artifact.open_artifact", lambda path: MANIFEST)
    monkeypatch.chdir(tmp_path)
    return module


def test_names_of_an_option_given_twice_are_joined(exports):
    argv = ["export", "acme/tiny", "--precision", "fp32,int8", "--target", "cuda", "--precision", "fp16"]
    assert main(argv) == 0
    _, _, options = exports.calls[0]
    assert (options["precisions"], options["targets"]) == (("fp32", "int8", "fp16"), ("cuda",))
    assert main([*argv[:2], "-o", "other"]) == 0
    assert exports.calls[1][2]["precisions"] is None


def test_every_option_is_passed(exports, capsys):
    argv = ["export", "acme/tiny", "--task", "score", "-o", "out", "--revision", "v1", "--precision", "fp32, int8"]
    argv += [
        "--target",
        "cpu,cuda",
        "--min-cosine",
        "0.9",
        "--max-memory",
        "1.5",
        "--calibration",
        "texts.txt",
        "--trust-remote-code",
        "--force",
    ]
    argv += ["--convert", "classify", "--runner", "pooling", "--score-template", "qwen3_reranker"]
    argv += ["--pooler-config", '{"pooling_type": "LAST"}', "--hf-overrides", '{"num_labels": 1}']
    assert main(argv) == 0
    options = {
        "task": "score",
        "convert": "classify",
        "runner": "pooling",
        "pooler_config": {"pooling_type": "LAST"},
        "hf_overrides": {"num_labels": 1},
        "score_template": "qwen3_reranker",
        "revision": "v1",
        "precisions": ("fp32", "int8"),
        "targets": ("cpu", "cuda"),
        "min_cosine": 0.9,
        "max_memory": 1.5,
        "calibration": "texts.txt",
        "trust_remote_code": True,
        "overwrite": True,
    }
    assert exports.calls == [("acme/tiny", Path("out"), options)]
    printed = capsys.readouterr()
    assert printed.err == "trace ...\n"
    assert "cpu_fp32  sequence  alone     40   0.9999998   1.2e-07  yes" in printed.out
    assert printed.out.endswith("Written to out in 3.5 s. Next:\n  poolgraph embed out texts.txt -o vectors.npy\n")


def test_what_does_not_run_here_is_said_to_be_unverified(exports, monkeypatch, capsys):
    variants = [msgspec.structs.replace(variant, verified=False) for variant in MANIFEST.variants]
    manifest = msgspec.structs.replace(MANIFEST, variants=tuple(variants))
    monkeypatch.setattr("poolgraph.graphs.artifact.open_artifact", lambda path: manifest)
    assert main(["export", "acme/tiny"]) == 0
    said = f"poolgraph: not verified, since it does not run here: {variants[0].name} (CPUExecutionProvider"
    assert said in capsys.readouterr().err


def test_defaults(exports, tmp_path):
    for model, output in (("acme/tiny", "tiny.poolgraph"), ("./folder/", "folder.poolgraph"), (".", None)):
        assert main(["export", model]) == 0
        name, path, options = exports.calls.pop()
        assert (name, path) == (model, Path(output or f"{tmp_path.name}.poolgraph"))
        assert options == DEFAULTS


def test_the_older_spelling_of_the_pooler_config(exports):
    assert main(["export", "acme/tiny", "--override-pooler-config", '{"normalize": false}']) == 0
    assert exports.calls[0][2] == DEFAULTS | {"pooler_config": {"normalize": False}}


def test_as_json(exports, capsys):
    assert main(["export", "acme/tiny", "-o", "out", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["path"] == "out"
    assert outcome["seconds"] == {"trace": 1.5, "verify": 2.0}
    assert outcome["report"]["rows"][0]["min_cosine"] == CHECK.min_cosine


def test_the_choices_are_the_exporters(capsys):
    assert main(["export", "--help"]) == 0
    usage = "".join(capsys.readouterr().out.split())
    assert f"--convert{{{','.join(CONVERSIONS)}}}" in usage
    assert f"--runner{{{','.join(RUNNERS)}}}" in usage


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "embed {path} texts.txt -o vectors.npy"),
        ({"scoring": Scoring(kind="bi_encoder")}, "embed {path} texts.txt -o vectors.npy"),
        ({"scoring": Scoring(kind="cross_encoder")}, 'rerank {path} documents.txt --query "..."'),
        ({"scoring": Scoring(kind="late_interaction")}, 'rerank {path} documents.txt --query "..."'),
        ({"tasks": ("classify", "token_classify")}, "classify {path} texts.txt -o labels.jsonl"),
        (
            {"tasks": ("token_classify",), "labels": ("O", "B-PER", "I-PER")},
            "encode {path} texts.txt --entities -o entities.jsonl",
        ),
        (
            {"tasks": ("token_classify",), "labels": ("a", "b")},
            "encode {path} texts.txt --task token_classify -o tokens.jsonl",
        ),
        (
            {
                "tasks": ("token_classify",),
                "pooler": msgspec.structs.replace(MANIFEST.pooler, tok_pooling_type="STEP", step_tag_id=4),
            },
            "reward {path} texts.txt -o rewards.jsonl",
        ),
        (
            {
                "tasks": ("classify", "token_classify"),
                "pooler": msgspec.structs.replace(MANIFEST.pooler, embedding_size=1),
            },
            "reward {path} texts.txt -o rewards.jsonl",
        ),
        ({"tasks": ("token_embed",)}, "encode {path} texts.txt --task token_embed -o tokens.parquet"),
    ],
)
def test_the_next_command_fits_the_artifact(changes, command):
    tasks = changes.get("tasks", MANIFEST.tasks)
    manifest = msgspec.structs.replace(MANIFEST, **{"default_task": tasks[0]} | changes)
    assert suggest_command(manifest) == command


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (VerificationError("cosine 0.5 below 0.99999"), 3, "poolgraph: error: cosine 0.5 below 0.99999\n"),
        (ExportError("no config.json"), 2, "poolgraph: error: no config.json\n"),
        (InputError("bad", parameter="p", value=3), 2, "poolgraph: error: bad (parameter=p, value=3)\n"),
        (KeyboardInterrupt(), 130, "poolgraph: interrupted\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "poolgraph: error: this needs torch, which is not installed; "
            'install it with: pip install "poolgraph[export]"\n',
        ),
        (ModuleNotFoundError("No module named 'x'", name="onnxruntime.capi"), 2, 'pip install "poolgraph[cpu]"\n'),
        (ModuleNotFoundError("No module named 'x'", name="pyarrow.parquet"), 2, 'pip install "poolgraph[files]"\n'),
        (FileExistsError(17, "File exists", "out/sub"), 2, "trace ...\npoolgraph: error: out/sub: File exists\n"),
        (OSError(28, "No space left on device"), 2, "trace ...\npoolgraph: error: No space left on device\n"),
    ],
)
def test_errors_have_codes_and_no_traceback(exports, capsys, outcome, code, message):
    exports.outcome = outcome
    assert main(["export", "acme/tiny"]) == code
    printed = capsys.readouterr()
    assert printed.err.endswith(message)
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("outcome", [ZeroDivisionError("bug"), ModuleNotFoundError("No module named 'y'", name="y")])
def test_the_unexpected_is_exit_code_1_with_a_traceback(exports, capsys, outcome):
    exports.outcome = outcome
    assert main(["export", "acme/tiny"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert str(outcome) in error


def test_the_support_table_is_listed_without_torch(exports, capsys):
    assert main(["export", "--list"]) == 0
    assert capsys.readouterr().out == render_text(read_support()) + "\n"
    assert main(["export", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["architecture"] for row in rows] == [entry.architecture for entry in read_support()]
    command = "import sys; from poolgraph.cli import main; main(['export', '--list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False, capture_output=True).returncode == 0
    assert exports.calls == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [([], "export needs MODEL"), (["acme/tiny", "--list"], "leave MODEL out")],
)
def test_a_model_or_the_list(exports, capsys, argv, message):
    assert main(["export", *argv]) == 2
    assert message in capsys.readouterr().err
    assert exports.calls == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--task", "dance"],
        ["--convert", "generate"],
        ["--runner", "generate"],
        ["--pooler-config", "LAST"],
        ["--pooler-config", "[1]"],
        ["--hf-overrides", "{"],
        ["--precision", "fp32,,int8"],
        ["--min-cosine", "nan"],
        ["--min-cosine", "1.01"],
        ["--min-cosine=-0.1"],
        ["--min-cosine", "high"],
    ],
)
def test_wrong_usage_is_exit_code_2(exports, argv, capsys):
    assert main(["export", "model", *argv]) == 2
    assert "usage: poolgraph export" in capsys.readouterr().err
    assert exports.calls == []


def test_a_precision_that_is_not_offered_is_refused_with_what_is(minilm_checkpoint, tmp_path, capsys):
    assert main(["export", str(minilm_checkpoint), "-o", str(tmp_path / "out"), "--precision", "fp8"]) == 2
    error = capsys.readouterr().err
    assert "--target cpu --precision fp8 is not offered" in error
    assert "--target cpu --precision fp32" in error
    assert not (tmp_path / "out").exists()
