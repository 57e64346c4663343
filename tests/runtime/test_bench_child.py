"""What a child of ``poolgraph bench`` does: repeat, pick the faster batch size, store answers and print a line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from poolgraph.runtime import bench_child
from poolgraph.runtime.bench_child import (
    Job,
    Line,
    check_finite,
    decode_job,
    encode_job,
    load_answers,
    read_line,
    save_answers,
)
from poolgraph.runtime.bench_engines import EngineRequest
from poolgraph.runtime.bench_machine import describe_machine, hide_paths, read_versions
from poolgraph.runtime.bench_timing import Timing, distinct_batch_sizes, is_enough, measure, time_batch_sizes
from poolgraph.runtime.tuning import Tuning

TIMING = Timing(min_s=0.02, max_s=0.1, min_repeats=2)


def test_repeats_stop_when_both_minimums_are_met_or_time_is_up():
    timing = Timing(min_s=1.5, max_s=5.0, min_repeats=5)
    assert not is_enough(4, 2.0, timing)
    assert not is_enough(9, 1.4, timing)
    assert is_enough(5, 1.5, timing)
    assert is_enough(1, 5.0, timing)
    assert not is_enough(0, 9.0, timing)


def test_long_calls_are_not_warmed_up_again():
    calls = []
    assert len(measure(lambda: calls.append(1), Timing(min_s=0.0, max_s=9.0, min_repeats=2), warm_up_s=1.0)) == 2
    assert len(calls) == 2
    measure(lambda: calls.append(1), Timing(min_s=0.01, max_s=0.0, min_repeats=2), warm_up_s=0.0)
    assert len(calls) == 2 + 3 + 1


def test_batch_sizes_that_hold_all_texts_are_tried_once():
    assert distinct_batch_sizes((8, 32), 8) == [8]
    assert distinct_batch_sizes((8, 32), 9) == [8, 32]
    assert distinct_batch_sizes((), 9) == [None]


def test_the_faster_batch_size_counts(monkeypatch):
    seconds = {8: [3.0, 1.0, 2.0], 32: [1.5]}
    monkeypatch.setattr("poolgraph.runtime.bench_timing.measure", lambda run, _timing, _warm_up: seconds[run.args[0]])
    timed = time_batch_sizes(lambda _size: None, [8, 32], TIMING, 1.0)
    assert (timed.median_s, timed.repeats, timed.batch_size) == (1.5, 1, 32)


def test_answers_survive_the_disk(tmp_path):
    for answers in (
        np.arange(6, dtype=np.float32).reshape(3, 2),
        [np.ones((2, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.float32), np.ones((1, 3), dtype=np.float32)],
        np.array([0.5, 0.25], dtype=np.float32),
    ):
        save_answers(tmp_path / "a" / "w.npz", answers)
        found = load_answers(tmp_path / "a" / "w.npz")
        assert [row.shape for row in found] == [np.shape(row) for row in answers]
        for left, right in zip(found, answers, strict=True):
            np.testing.assert_array_equal(left, right)


def test_answers_that_are_no_numbers():
    check_finite(np.ones((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="2 numbers of the answers are NaN or infinite"):
        check_finite([np.array([[np.nan, 1.0]], dtype=np.float32), np.array([[np.inf, 1.0]], dtype=np.float32)])


def test_jobs_survive_the_pipe():
    request = EngineRequest(directory=Path("a"), task="embed", checkpoint=Path("b"), tuning=Tuning(threads=2))
    job = Job(engine="torch", request=request, workloads=Path("w.json"), timing=TIMING, answers=Path("c"))
    assert decode_job(encode_job(job)) == job
    plain = msgspec.structs.replace(job, answers=None, request=EngineRequest(directory=Path("a"), task="embed"))
    assert decode_job(encode_job(plain)) == plain


def test_a_child_that_was_killed_is_a_line():
    assert read_line("a", 0, b'noise\n\n{"engine":"a","load_s":2.5}\n', b"") == Line(engine="a", load_s=2.5)
    assert read_line("a", -9, b"noise\n", b"warning\nfile /x/y/z.bin is gone\n\n") == Line(
        engine="a", error="exit code -9: file z.bin is gone"
    )
    assert read_line("a", 3, b"", b"").error == "exit code 3"


def test_a_child_that_takes_too_long_is_a_line(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    job = Job(
        engine="a",
        request=EngineRequest(directory=Path("a"), task="embed"),
        workloads=Path("w"),
        timing=TIMING,
    )
    assert bench_child.run_child(job) == Line(engine="a", error="no answer within 1800 s")


def test_the_machine_is_described_without_names_of_its_own():
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert {"python", "poolgraph", "numpy"} <= set(read_versions())
    assert hide_paths("File '/a/b/c/model.onnx' is missing in /x/y/ (see https://h.org/p/q)") == (
        "File 'model.onnx' is missing in  (see https://h.org/p/q)"
    )
