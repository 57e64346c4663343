"""The command ``bench``: one run of the whole on a tiny artifact, wrong options, what is not installed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from poolgraph import PoolingModel
from poolgraph.cli import COMMANDS, build_parser, main
from poolgraph.errors import InputError
from poolgraph.runtime.bench_engines import EngineRequest, check_peers
from poolgraph.runtime.bench_run import run_bench
from poolgraph.runtime.bench_tasks import BENCH_TASKS
from poolgraph.runtime.bench_tune import tune_variant
from poolgraph.runtime.bench_workloads import Workload


def test_the_whole_on_a_tiny_artifact(artifact, tmp_path, capsys):
    argv = ["bench", str(artifact), "--workloads", "1x4,mixed", "--rounds", "1", "--seconds", "0.02"]
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2\nw3\n" + "w4 " * 30)
    argv += ["--against", "portable", "--texts", str(texts), "-o", str(tmp_path / "out.json")]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["[1/2] round 1, cpu_fp32", "[2/2] round 1, portable"]
    result = json.loads((tmp_path / "out.json").read_text())
    assert [engine["name"] for engine in result["engines"]] == ["cpu_fp32", "portable"]
    for engine in result["engines"]:
        assert engine["error"] is None
        assert 0 < engine["load_s"] < 60
        assert engine["peak_rss_mib"] > 10
        for shape in result["workloads"]:
            row = engine["workloads"][shape["name"]]
            assert row["tokens_per_s"] == pytest.approx(shape["num_tokens"] / row["rounds_s"][0])
            assert row["fidelity"]["min_cosine"] > 0.99999
    assert [shape["num_tokens"] for shape in result["workloads"]] == [4, 4 + 3 + 16]
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    lines = [row.split() for row in captured.out.splitlines()]
    assert ["mixed", "portable"] in [row[:2] for row in lines]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "magic"], "unknown magic; there are torch, torch-bf16, openvino"),
        (["--workloads", "8by128"], "'8by128' is no workload"),
        (["--precision", "fp16"], "the artifact has no variant in fp16; it has fp32"),
        (["--task", "score"], "is not measured on score, but on embed, token_embed"),
        (["--plot", "plot.txt"], "a plot is written as .png, .svg, .pdf"),
        (["-o", "missing/out.json"], "to write out.json into"),
        (["--checkpoint", "folder"], "--checkpoint is for engines that run it"),
        (["--tune", "--against", "torch"], "--tune measures the artifact alone"),
        (["--tune", "--rounds", "1", "--workloads", "4x4"], "--tune needs at least 2 rounds"),
        (["--tune", "--workloads", "1x4,mixed"], "--tune finds the plan for one workload"),
        (["--tune", "--workloads", "1x4"], "every plan runs 1x4 alike"),
    ],
)
def test_wrong_options_are_found_before_anything_is_measured(artifact, monkeypatch, capsys, options, message):
    def measure_nothing(_job):
        raise AssertionError

    for function in (run_bench, tune_variant):
        monkeypatch.setitem(function.__kwdefaults__, "run", measure_nothing)
    assert main(["bench", str(artifact), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "nan", "-1", "inf", "x"])
def test_seconds_are_a_number_above_0(artifact, capsys, seconds):
    assert main(["bench", str(artifact), "--seconds", seconds]) == 2
    assert "is not a number of seconds above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "package"),
    [(["--plot", "out.png"], "matplotlib"), (["--against", "openvino"], "openvino")],
)
def test_what_is_not_installed_is_named_with_its_extra(artifact, monkeypatch, capsys, options, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        "poolgraph.runtime.bench_engines.find_spec", lambda name: None if name == package else find_spec(name)
    )
    assert main(["bench", str(artifact), *options]) == 2
    assert f'this needs {package}, which is not installed; install it with: pip install "poolgraph[bench]"' in (
        capsys.readouterr().err
    )


def test_peers_are_checked_by_name():
    check_peers(("portable",))
    with pytest.raises(InputError, match="unknown tensorrt; there are torch"):
        check_peers(("portable", "tensorrt"))


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino, of the extra bench")
@pytest.mark.parametrize("task", ["embed", "token_embed"])
def test_openvino_answers_what_the_artifact_answers(artifact, task):
    from poolgraph.runtime.bench_openvino import load

    workload = Workload(name="mixed", texts=tuple("w1 w2 " * (1 + index % 5) for index in range(30)), lengths=())
    request = EngineRequest(directory=artifact, task=task)
    engine = load(request, precision="f32")
    with PoolingModel.load(artifact) as model:
        for asked in (workload, replace(workload, texts=workload.texts[:3])):
            expected = BENCH_TASKS[task].ask(model, asked)
            for found, row in zip(engine.ask(asked, None), expected, strict=True):
                np.testing.assert_allclose(found, row, atol=1e-5)


def test_the_parser_has_the_command():
    assert "bench" in {command.name for command in COMMANDS}
    args = build_parser().parse_args(["bench", "DIR"])
    assert (args.workloads, args.rounds, args.seconds, args.against) == (None, 3, 1.5, ())
