"""``poolgraph bench --tune``: the grid, what differs on a workload, how noise is judged, and what is stored."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fake_embedder import MANIFEST, VARIANT

from poolgraph.cli import main
from poolgraph.errors import InputError, SessionError
from poolgraph.graphs.manifest import Tokenization
from poolgraph.runtime import bench_tune
from poolgraph.runtime.bench_child import Line, Measured
from poolgraph.runtime.bench_engines import EngineRequest
from poolgraph.runtime.bench_timing import Timing
from poolgraph.runtime.bench_tune import (
    BUDGETS,
    choose_candidates,
    format_tune,
    is_faster,
    propose_tunings,
    tune_variant,
)
from poolgraph.runtime.bench_workloads import Workload
from poolgraph.runtime.cpu import CpuInfo, read_cpu_info
from poolgraph.runtime.runner_padded import PaddedRunner
from poolgraph.runtime.runner_uniform import UniformRunner
from poolgraph.runtime.tuning import TUNING_FILE, Tuning, find_entry, read_tuning

VARIANTS = (msgspec.structs.replace(VARIANT, name="cpu_int8", precision="int8"),)
FOUND = msgspec.structs.replace(MANIFEST, variants=VARIANTS)
TIMING = Timing(min_s=0.02, max_s=0.1, min_repeats=2)
CPU = CpuInfo(model="Some CPU", num_cores=4, features=())
REQUEST = EngineRequest(directory=Path("artifact"), task="embed")
MIXED = Workload(name="mixed", texts=("w1",) * 64, lengths=(64,) * 64)
BEST = Tuning(threads=2, max_batch_tokens=512)


@pytest.mark.parametrize(
    ("cores", "threads"),
    [(1, {None, 1}), (2, {None, 1, 2}), (6, {None, 1, 2, 4, 6}), (64, {None, 1, 2, 4, 8, 16, 32, 64})],
)
def test_the_grid(cores, threads):
    grid = propose_tunings(cores)
    assert grid[0] == Tuning()
    assert len(set(grid)) == len(grid)
    assert {(row.threads, row.max_batch_tokens) for row in grid} == {(n, budget) for n in threads for budget in BUDGETS}


def test_plans_that_run_the_workload_alike_are_measured_once():
    found = choose_candidates(propose_tunings(4), MIXED.lengths, UniformRunner(), 4)
    assert found[0].tuning == Tuning()
    assert len({candidate.work for candidate in found}) == len(found)
    # One thread a run is what the rule does with many batches: it is never named for that.
    assert {candidate.tuning.threads for candidate in found} == {None, 2, 4}
    padded = choose_candidates(propose_tunings(4), [16], PaddedRunner(Tokenization(pad_token_id=0)), 4)
    assert [candidate.tuning for candidate in padded] == [Tuning()]


@pytest.mark.parametrize(
    ("speeds", "default", "expected"),
    [
        ([110, 111, 112], [100, 101, 102], True),
        ([101, 120, 121], [100, 101, 102], False),  # its slowest round is the default's median
        ([102, 103, 104], [100, 100.5, 101], False),  # beyond the noise, but not worth it
        ([90, 91, 92], [100, 101, 102], False),
    ],
)
def test_faster_means_beyond_the_noise(speeds, default, expected):
    assert is_faster(speeds, default) is expected


def speaking(speed, failing=None):
    """A child whose speed is made up; ``calls`` are the plans measured."""
    calls = []

    def run(job):
        calls.append(job.request.tuning)
        if job.request.tuning == failing:
            return Line(engine=job.engine, error="out of memory")
        tokens_per_s = speed(job.request.tuning, len(calls))
        measured = Measured(median_s=1.0, repeats=5, batch_size=None, texts_per_s=1.0, tokens_per_s=tokens_per_s)
        return Line(engine=job.engine, label="poolgraph", workloads={"mixed": measured})

    return run, calls


def tune(run, *, rounds=3, workload=MIXED, say=lambda _message: None):
    return tune_variant(REQUEST, FOUND, "cpu_int8", workload, cpu=CPU, rounds=rounds, timing=TIMING, say=say, run=run)


def test_the_fastest_plan_is_measured_again_and_stored():
    run, calls = speaking(lambda tuning, call: (2000.0 if tuning == BEST else 1000.0) + call % 7)
    result = tune(run)
    num_plans = len(result.candidates)
    assert calls[:num_plans] == [candidate.tuning for candidate in result.candidates]
    assert calls[: 3 * num_plans] == calls[:num_plans] * 3
    assert calls[3 * num_plans :] == [Tuning(), BEST] * 3
    assert result.entry.tuning == BEST
    assert result.entry.key == ("Some CPU", 4, "cpu_int8")
    assert (result.entry.workload, result.entry.rounds) == ("mixed", 3)
    assert 2000 <= result.entry.tokens_per_s <= 2006
    assert 1000 <= result.entry.default_tokens_per_s <= 1006
    assert "2.00 times the default's speed" in format_tune(result)


def test_a_plan_that_was_only_lucky_is_not_stored():
    run, calls = speaking(lambda tuning, call: 2000.0 if tuning == BEST and call < 30 else 1000.0)
    result = tune(run)
    assert calls[-2:] == [Tuning(), BEST]
    assert result.entry.tuning == Tuning()
    assert result.entry.tokens_per_s == result.entry.default_tokens_per_s == 1000.0
    assert "the default plan stays" in format_tune(result)


def test_the_default_is_stored_without_a_second_look_where_it_is_fastest():
    run, calls = speaking(lambda tuning, _call: 2000.0 if tuning == Tuning() else 1000.0)
    result = tune(run, rounds=2)
    assert len(calls) == 2 * len(result.candidates)
    assert (result.confirmed, result.entry.tuning) == ((), Tuning())


def test_what_cannot_be_tuned():
    run, calls = speaking(lambda _tuning, _call: 1.0)
    with pytest.raises(InputError, match="at least 2 rounds to see the noise, got 1"):
        tune(run, rounds=1)
    with pytest.raises(InputError, match="every plan runs mixed alike on 4 cores"):
        tune(run, workload=Workload(name="mixed", texts=("w1",), lengths=(3,)))
    assert calls == []
    run, _ = speaking(lambda _tuning, _call: 1.0, failing=BEST)
    with pytest.raises(SessionError, match="cpu_int8 failed with 2 x 2 threads, batches of 512 tokens: out of memory"):
        tune(run)


def test_the_command_stores_what_it_found(artifact, monkeypatch, capsys):
    run, calls = speaking(lambda tuning, _call: 2000.0 if tuning.max_batch_tokens == 128 else 1000.0)
    monkeypatch.setitem(tune_variant.__kwdefaults__, "run", run)
    assert main(["bench", str(artifact), "--tune", "--workloads", "64x16", "--rounds", "2"]) == 0
    captured = capsys.readouterr()
    assert f"Stored in {artifact / TUNING_FILE}" in captured.out
    assert "2.00 times the default's speed" in captured.out
    entry = find_entry(read_tuning(artifact), read_cpu_info(), "cpu_fp32")
    assert entry is not None
    assert (entry.max_batch_tokens, entry.workload) == (128, "64x16")
    assert main(["inspect", str(artifact)]) == 0
    assert "Tuned (tuning.json)" in capsys.readouterr().out
    (artifact / TUNING_FILE).write_text("mine")
    calls.clear()
    assert main(["bench", str(artifact), "--tune", "--workloads", "64x16"]) == 2
    assert "tuning.json cannot be used" in capsys.readouterr().err
    assert calls == []


def test_a_plan_is_measured_in_a_real_process(artifact, monkeypatch):
    monkeypatch.setattr(
        bench_tune, "propose_tunings", lambda _cores: (Tuning(), Tuning(threads=1, max_batch_tokens=64))
    )
    argv = ["--workloads", "64x16", "--rounds", "2", "--seconds", "0.01", "--json"]
    assert main(["bench", str(artifact), "--tune", *argv]) == 0
    [entry] = read_tuning(artifact)
    assert entry.tokens_per_s > 100
    assert entry.tuning in (Tuning(), Tuning(threads=1, max_batch_tokens=64))
