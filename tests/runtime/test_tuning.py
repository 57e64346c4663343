"""``tuning.json``: read strictly, ignored with a warning where it cannot be used, and what it changes."""

from __future__ import annotations

import json
import tempfile
import warnings

import numpy as np
import pytest

from poolgraph import PoolingModel
from poolgraph.cli import main
from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime import loaded
from poolgraph.runtime.cpu import CpuInfo
from poolgraph.runtime.executor import plan_work
from poolgraph.runtime.planner import MAX_BATCH_TOKENS
from poolgraph.runtime.runner_packed import PackedRunner
from poolgraph.runtime.runner_uniform import UniformRunner
from poolgraph.runtime.tuning import (
    LARGEST_BYTES,
    TUNING_FILE,
    Tuning,
    TuningEntry,
    check_storable,
    find_entry,
    load_tuning,
    read_tuning,
    store_entry,
)

CPU = CpuInfo(model="Some CPU", num_cores=8, features=())
ENTRY = TuningEntry(
    cpu=CPU.model,
    cores=CPU.num_cores,
    variant="cpu_fp32",
    threads=4,
    max_batch_tokens=256,
    workload="mixed",
    tokens_per_s=2000.0,
    default_tokens_per_s=1000.0,
    rounds=3,
    poolgraph_version="0.1.0",
    date="2026-11-28",
)
TEXTS = ["w1 w2"] * 40 + ["w3"] * 9


@pytest.fixture
def machine(monkeypatch):
    """Eight cores of a known name, whatever runs the tests."""
    monkeypatch.setattr(loaded, "read_cpu_info", lambda: CPU)


def changed(**changes):
    return TuningEntry(**({name: getattr(ENTRY, name) for name in ENTRY.__struct_fields__} | changes))


def plan_of(model, texts=TEXTS):
    return model._executor._plan(model.tokenizer.encode(texts), 1)


def test_an_entry_comes_back_and_replaces_its_predecessor(tmp_path):
    other = changed(variant="cpu_int8", threads=None)
    assert read_tuning(tmp_path) == ()
    for entry in (ENTRY, other, changed(cores=4), changed(max_batch_tokens=512)):
        store_entry(tmp_path, entry)
    assert read_tuning(tmp_path) == (changed(cores=4), changed(max_batch_tokens=512), other)
    assert find_entry(read_tuning(tmp_path), CPU, "cpu_int8") == other
    assert load_tuning(tmp_path, CPU, "cpu_int8") == Tuning(threads=None, max_batch_tokens=256)
    assert [file.name for file in tmp_path.iterdir()] == [TUNING_FILE]


@pytest.mark.parametrize(
    "cpu",
    [
        CpuInfo(model="Some CPU", num_cores=4, features=()),
        CpuInfo(model="Another CPU", num_cores=8, features=()),
    ],
)
def test_an_entry_holds_for_its_machine_alone(tmp_path, cpu):
    store_entry(tmp_path, ENTRY)
    assert load_tuning(tmp_path, cpu, "cpu_fp32") == Tuning()
    assert load_tuning(tmp_path, CPU, "portable_fp32") == Tuning()


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file | {"format_version": 2},
        lambda file: file | {"comment": "mine"},
        lambda file: file | {"entries": {}},
        lambda file: [file],
        lambda file: {"format_version": 1},
        lambda file: file | {"entries": [file["entries"][0] | {"threads": 0}]},
        lambda file: file | {"entries": [file["entries"][0] | {"threads": 9}]},
        lambda file: file | {"entries": [file["entries"][0] | {"max_batch_tokens": "256"}]},
        lambda file: file | {"entries": [file["entries"][0] | {"tokens_per_s": -1}]},
        lambda file: file | {"entries": [file["entries"][0] | {"host": "here"}]},
        lambda file: file | {"entries": [{k: v for k, v in file["entries"][0].items() if k != "date"}]},
    ],
)
def test_another_file_is_refused_and_ignored_with_one_warning(artifact, machine, edit):
    store_entry(artifact, ENTRY)
    file = artifact / TUNING_FILE
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))
    with pytest.raises(ArtifactError, match=r"tuning\.json cannot be used: .*; remove it, or tune again"):
        read_tuning(artifact)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with PoolingModel.load(artifact) as model:
            assert model._executor.tuning == Tuning()
    [warning] = caught
    assert "The default plan is used." in str(warning.message)
    assert warning.filename == __file__


def test_what_is_no_file_of_ours_is_never_followed_read_whole_or_replaced(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    file = folder / TUNING_FILE
    store_entry(tmp_path, ENTRY)
    file.symlink_to(tmp_path / TUNING_FILE)
    with pytest.raises(ArtifactError, match="it is a link that leaves the artifact"):
        read_tuning(folder)
    file.unlink()
    file.write_bytes(b" " * LARGEST_BYTES + (tmp_path / TUNING_FILE).read_bytes())
    with pytest.raises(ArtifactError, match="it has more than 1048576 bytes"):
        read_tuning(folder)
    file.write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="cannot be used"):
        store_entry(folder, ENTRY)
    with pytest.raises(ArtifactError, match="cannot be used"):
        check_storable(folder)
    assert file.read_bytes() == b"\xff"
    file.unlink()
    file.mkdir()
    with pytest.raises(ArtifactError, match="cannot be used"):
        read_tuning(folder)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    check_storable(tmp_path)

    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot be written to \(Read-only file system\).*tune a copy"):
        check_storable(tmp_path)
    with pytest.raises(InputError, match="cannot be written to"):
        store_entry(tmp_path / "missing", ENTRY)


def test_the_executor_plans_by_the_entry(artifact, machine):
    with PoolingModel.load(artifact) as model:
        expected, before = model.embed(TEXTS), plan_of(model)
    store_entry(artifact, ENTRY)
    assert open_artifact(artifact, check_hashes="all").files.get(TUNING_FILE) is None
    with PoolingModel.load(artifact) as model:
        after = plan_of(model)
        np.testing.assert_array_equal(model.embed(TEXTS), expected)
        assert plan_of(model, ["w1"]).threads == 8
    assert (before.runs, before.threads) == (8, 1)
    assert (after.runs, after.threads) == (2, 4)
    assert len(before.batches) == 8
    assert len(after.batches) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threads": 2}, (2, 4, 256)),
        ({"max_batch_tokens": 64}, (4, 2, 64)),
        ({"threads": 8, "max_batch_tokens": 64}, (8, 1, 64)),
        ({"tuning": Tuning(max_batch_tokens=384)}, (1, 8, 384)),
        ({"variant": "portable_fp32"}, (1, 8, MAX_BATCH_TOKENS)),
    ],
)
def test_what_the_caller_gives_wins(artifact, machine, options, expected):
    store_entry(artifact, ENTRY)
    with PoolingModel.load(artifact, **options) as model:
        plan = plan_of(model)
        assert (plan.threads, plan.runs, model._executor.tuning.max_batch_tokens) == expected


def test_a_caller_who_gives_everything_is_not_warned(artifact, machine):
    (artifact / TUNING_FILE).write_text("no JSON")
    with PoolingModel.load(artifact, threads=1, max_batch_tokens=64) as model:
        assert plan_of(model).threads == 1


def test_batches_are_not_cut_finer_than_runs_need():
    work = plan_work([64] * 64, UniformRunner(), Tuning(threads=8, max_batch_tokens=2048), cores=8)
    assert (len(work.batches), work.runs, work.threads) == (2, 1, 8)
    work = plan_work([64] * 64, UniformRunner(), Tuning(max_batch_tokens=2048), cores=8)
    assert (len(work.batches), work.runs, work.threads) == (8, 8, 1)


def test_inspect_and_verify_live_with_the_file(artifact, capsys):
    store_entry(artifact, ENTRY)
    assert main(["inspect", str(artifact)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Tuned (tuning.json)")
    assert lines[at + 3].split() == [
        *("cpu_fp32", "Some", "CPU", "8", "4", "256", "mixed", "2000", "1000", "poolgraph", "0.1.0", "2026-11-28")
    ]
    (artifact / TUNING_FILE).write_text("{}")
    assert main(["inspect", str(artifact)]) == 0
    captured = capsys.readouterr()
    assert "Tuned" not in captured.out
    assert "tuning.json cannot be used" in captured.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 1, 4)),
        ({"threads": 1}, (4, 4, 1)),  # one batch would leave three cores idle
        ({"threads": 2}, (2, 2, 2)),
        ({"callers": 2}, (2, 2, 1)),
        ({"callers": 4}, (1, 1, 1)),
    ],
)
def test_a_packed_batch_is_cut_unless_it_gets_all_cores(options, expected):
    work = plan_work([40] * 12, PackedRunner(), Tuning(), cores=4, **options)
    assert (len(work.batches), work.runs, work.threads) == expected


@pytest.mark.parametrize("runner", [UniformRunner, PackedRunner])
def test_batches_that_have_all_cores_in_turn_are_not_cut_for_them(runner):
    work = plan_work([40] * 15, runner(), Tuning(), cores=32)
    assert (sorted(batch.num_tokens for batch in work.batches), work.runs, work.threads) == ([280, 320], 1, 32)
    work = plan_work([40] * 15, runner(), Tuning(), cores=16)
    assert (len(work.batches), work.runs, work.threads) == (15, 15, 1)
