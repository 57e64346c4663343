"""``poolgraph bench``: what runs in which order, what lines add up to, and one run of the whole on a tiny artifact."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_embedder import MANIFEST, VARIANT

from poolgraph.cli_bench import BENCH_TASKS as COMMAND_TASKS
from poolgraph.cli_bench import PEERS as COMMAND_PEERS
from poolgraph.errors import ArtifactError, InputError, SessionError
from poolgraph.graphs.manifest import Pooler, Scoring
from poolgraph.runtime.bench_chart import LEAST, check_plot, distance
from poolgraph.runtime.bench_child import (
    Line,
    Measured,
    save_answers,
)
from poolgraph.runtime.bench_engines import (
    PEERS,
    EngineRequest,
    choose_reference,
    choose_variants,
    find_portable,
)
from poolgraph.runtime.bench_results import Fidelity, format_bench, summarize
from poolgraph.runtime.bench_run import BenchPlan, plan_turns, run_bench
from poolgraph.runtime.bench_tasks import BENCH_TASKS, choose_task
from poolgraph.runtime.bench_timing import Timing
from poolgraph.runtime.bench_workloads import Workload
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.planner import Batch, plan_sorted_batches
from poolgraph.runtime.providers import Machine

CPU = CpuInfo(model="Some CPU", num_cores=2, features=("avx2", "avx512_vnni"))
AVAILABLE = ("CPUExecutionProvider",)
MACHINE = Machine(providers=AVAILABLE, cpu_features=CPU.features)
TIMING = Timing(min_s=0.02, max_s=0.1, min_repeats=2)
WORKLOADS = (
    Workload(name="2x4", texts=("w1 w2", "w3 w4"), lengths=(4, 4)),
    Workload(name="mixed", texts=("w1", "w2 w3"), lengths=(3, 4)),
)


def variant(name, precision="fp32", target="cpu", **changes):
    return msgspec.structs.replace(VARIANT, name=name, precision=precision, target=target, **changes)


def manifest(*variants, **changes):
    return msgspec.structs.replace(MANIFEST, variants=variants or MANIFEST.variants, **changes)


BOTH = manifest(
    variant("portable_fp32", target="portable"),
    variant("cpu_fp32"),
    variant("cpu_int8", "int8", cpu_features=("avx512_vnni|asimddp",)),
)


# --- decisions


def test_the_command_names_every_task_and_engine():
    assert set(COMMAND_TASKS) == set(BENCH_TASKS)
    assert tuple(PEERS) == COMMAND_PEERS


@pytest.mark.parametrize(
    ("precisions", "features", "expected"),
    [
        (None, CPU.features, ["cpu_fp32", "cpu_int8"]),
        (("int8", "fp32"), CPU.features, ["cpu_int8", "cpu_fp32"]),
        (None, ("avx2",), ["cpu_fp32"]),
    ],
)
def test_variants_are_those_that_run_here(precisions, features, expected):
    chosen = choose_variants(BOTH, precisions, Machine(providers=AVAILABLE, cpu_features=features))
    assert [row.name for row in chosen] == expected


def test_portable_variants_stand_in_where_there_are_no_others():
    only = manifest(variant("portable_fp32", target="portable"))
    assert [row.name for row in choose_variants(only, None, MACHINE)] == ["portable_fp32"]
    assert find_portable(BOTH).name == "portable_fp32"
    with pytest.raises(ArtifactError, match=r"no portable graph, only \['cpu_fp32'\]"):
        find_portable(manifest(variant("cpu_fp32")))


def test_variants_that_cannot_be():
    with pytest.raises(InputError, match="no variant in fp16; it has fp32, int8"):
        choose_variants(BOTH, ("fp16",), MACHINE)
    with pytest.raises(ArtifactError, match="none of the variants"):
        choose_variants(BOTH, None, Machine(providers=()))


@pytest.mark.parametrize(
    ("engines", "found", "expected"),
    [
        (("cpu_int8", "torch"), BOTH, "torch"),
        (("cpu_int8", "torch-bf16"), BOTH, "cpu_fp32"),
        (("cpu_int8",), manifest(BOTH.variants[0], BOTH.variants[2]), "portable_fp32"),
        (("cpu_int8", "openvino"), manifest(BOTH.variants[2]), "cpu_int8"),
    ],
)
def test_the_reference_is_in_float32(engines, found, expected):
    assert choose_reference(engines, found) == expected


STEP = Pooler(pooling=(), embedding_size=2, tok_pooling_type="STEP", step_tag_id=3)
CROSS = Scoring(kind="cross_encoder")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tasks": ("embed", "token_embed"), "default_task": "embed"}, "embed"),
        ({"tasks": ("token_embed",), "default_task": "token_embed"}, "token_embed"),
        ({"tasks": ("classify", "token_classify"), "default_task": "classify"}, "classify"),
        ({"tasks": ("token_classify",), "default_task": "token_classify"}, "token_classify"),
        ({"tasks": ("classify",), "default_task": "classify", "scoring": CROSS}, "score"),
        ({"tasks": ("token_classify",), "default_task": "token_classify", "pooler": STEP}, "reward"),
        ({"tasks": ("classify",), "default_task": None}, "classify"),
    ],
)
def test_every_kind_of_artifact_has_its_task(changes, expected):
    assert choose_task(manifest(**changes)) == expected


def test_a_task_that_the_artifact_does_not_answer():
    assert choose_task(MANIFEST, "token_embed") == "token_embed"
    with pytest.raises(InputError, match="not measured on classify, but on embed, token_embed"):
        choose_task(MANIFEST, "classify")


def test_engines_take_turns():
    assert plan_turns(["a", "b"], 2) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_batches_of_others_are_sorted_and_complete():
    batches = plan_sorted_batches([3, 9, 1, 9, 4], 2)
    assert batches == (
        Batch(indices=(1, 3), length=9, num_tokens=18),
        Batch(indices=(4, 0), length=4, num_tokens=8),
        Batch(indices=(2,), length=1, num_tokens=1),
    )


# --- runs and results, with engines that are made up


def line(engine, seconds, **changes):
    rows = {
        workload.name: Measured(
            median_s=seconds,
            repeats=5,
            batch_size=8,
            texts_per_s=len(workload.texts) / seconds,
            tokens_per_s=workload.num_tokens / seconds,
        )
        for workload in WORKLOADS
    }
    values = {"label": engine.upper(), "load_s": seconds, "peak_rss_bytes": 2**30, "workloads": rows}
    return Line(engine=engine, **(values | changes))


def fidelity(cosine, difference=0.0):
    rows = Fidelity(mean_cosine=(1 + cosine) / 2, min_cosine=cosine, max_difference=difference)
    return {workload.name: rows for workload in WORKLOADS}


def test_medians_shares_and_failures():
    lines = {
        "a": [line("a", seconds) for seconds in (1.0, 4.0, 2.0)],
        "b": [line("b", 0.5), line("b", 0.5), Line(engine="b", error="no kernel")],
        "c": [line("c", 1.0)],
        "d": [line("d", 1.0)],
    }
    found = {"a": fidelity(1.0), "b": fidelity(1.0), "c": fidelity(0.9), "d": "other shapes"}
    first, second, third, fourth = summarize(lines, found)
    assert first.workloads["2x4"].tokens_per_s == 4.0
    assert first.workloads["2x4"].texts_per_s == 1.0
    assert first.workloads["2x4"].rounds_s == (1.0, 4.0, 2.0)
    assert (first.load_s, first.peak_rss_mib) == (2.0, 1024)
    assert (second.label, second.error, second.workloads) == ("B", "no kernel", {})
    assert third.workloads["mixed"].share == 2.0
    assert fourth.error == "other shapes"
    without = summarize({"b": lines["b"], "c": lines["c"]}, found)
    assert without[1].workloads["mixed"].share is None


def answering(answers, seconds=1.0, failing=()):
    """A child that stores made-up answers; ``calls`` are the engines and whether they stored and timed."""
    calls = []

    def run(job):
        calls.append((job.engine, job.answers is not None, job.timed))
        if job.engine in failing:
            return Line(engine=job.engine, error="no kernel")
        if job.answers is not None:
            for workload in WORKLOADS:
                save_answers(job.answers / f"{workload.name}.npz", answers[job.engine])
        return line(job.engine, seconds)

    return run, calls


def plan_for(*engines, rounds=2, found=BOTH, task="embed"):
    request = EngineRequest(directory=Path("some/artifact"), task=task)
    return BenchPlan(
        request=request, manifest=found, engines=engines, workloads=WORKLOADS, rounds=rounds, timing=TIMING
    )


ONE = np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
OTHER = np.array([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32)


def test_a_run_interleaves_and_compares():
    run, calls = answering({"cpu_fp32": ONE, "cpu_int8": OTHER})
    said = []
    result = run_bench(plan_for("cpu_fp32", "cpu_int8"), say=said.append, run=run)
    first, second = calls[:2], calls[2:]
    assert first == [("cpu_fp32", True, True), ("cpu_int8", True, True)]
    assert second == [("cpu_fp32", False, True), ("cpu_int8", False, True)]
    assert said[0] == "[1/4] round 1, cpu_fp32"
    assert result.reference == "cpu_fp32"
    assert result.artifact == "artifact"
    found = result.engines[1].workloads["mixed"].fidelity
    assert found.min_cosine == pytest.approx(0.5**0.5)
    assert found.mean_cosine == pytest.approx((1 + 0.5**0.5) / 2)
    assert found.max_difference == 0.5
    assert result.engines[0].workloads["mixed"].fidelity.max_difference == 0.0
    text = format_bench(result)
    assert "workload  engine    tokens/s  texts/s  share  mean cosine  min cosine" in text
    assert "mixed     cpu_int8         7      2.0   1.00     0.853553    0.707107" in text
    assert "1.00      1024  CPU_INT8" in text
    assert "max diff" in format_bench(msgspec.structs.replace(result, measure="difference"))


def test_a_reference_that_is_no_engine_answers_once():
    run, calls = answering({"cpu_fp32": ONE, "cpu_int8": OTHER})
    result = run_bench(plan_for("cpu_int8", rounds=1), say=lambda _message: None, run=run)
    assert calls == [("cpu_fp32", True, False), ("cpu_int8", True, True)]
    assert result.engines[0].workloads["mixed"].fidelity.min_cosine < 0.8
    run, _ = answering({"cpu_int8": OTHER}, failing=("cpu_fp32",))
    with pytest.raises(SessionError, match="the reference cpu_fp32 failed: no kernel"):
        run_bench(plan_for("cpu_int8"), say=lambda _message: None, run=run)


def test_an_engine_that_fails_is_a_row_and_is_not_run_again():
    run, calls = answering({"cpu_fp32": ONE, "torch": ONE}, failing=("openvino",))
    result = run_bench(plan_for("cpu_fp32", "openvino", rounds=3), say=lambda _message: None, run=run)
    assert [engine for engine, *_ in calls].count("openvino") == 1
    assert "openvino failed: no kernel" in format_bench(result)
    run, _ = answering({"cpu_fp32": ONE}, failing=("torch",))
    result = run_bench(plan_for("cpu_fp32", "torch"), say=lambda _message: None, run=run)
    assert result.engines[0].error == "there is nothing to compare with, since torch failed"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (ONE[:1], "have other shapes than those of cpu_fp32"),
        (ONE[:, :1], "have other shapes than those of cpu_fp32"),
    ],
)
def test_answers_of_other_shapes_are_an_error(answers, message):
    run, _ = answering({"cpu_fp32": ONE, "cpu_int8": answers})
    result = run_bench(plan_for("cpu_fp32", "cpu_int8"), say=lambda _message: None, run=run)
    assert message in result.engines[1].error


def test_texts_without_rows_are_left_out_of_the_comparison():
    rows = [np.ones((2, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.float32)]
    run, _ = answering({"cpu_fp32": rows, "cpu_int8": [2 * rows[0], rows[1]]})
    result = run_bench(plan_for("cpu_fp32", "cpu_int8"), say=lambda _message: None, run=run)
    assert result.engines[1].workloads["mixed"].fidelity.min_cosine == pytest.approx(1.0)
    run, _ = answering({"cpu_fp32": rows[1:]})
    result = run_bench(plan_for("cpu_fp32"), say=lambda _message: None, run=run)
    assert result.engines[0].error == "the answers to 2x4 are empty"


def test_distances_have_a_place_on_a_logarithmic_axis():
    assert distance(fidelity(1.0)["mixed"], "cosine") == LEAST
    assert distance(fidelity(0.9)["mixed"], "cosine") == pytest.approx(0.1)
    assert distance(fidelity(1.0, 0.25)["mixed"], "difference") == 0.25


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib, of the extra bench")
def test_a_plot_is_drawn(tmp_path):
    from poolgraph.runtime.bench_chart import draw_plot

    run, _ = answering({"cpu_fp32": ONE, "cpu_int8": OTHER})
    result = run_bench(plan_for("cpu_fp32", "cpu_int8"), say=lambda _message: None, run=run)
    draw_plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    check_plot(tmp_path / "plot.svg")
