"""Files of answers: chunks, resuming after any kind of end, and refusing to continue something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_embedder import MANIFEST, FakeEmbedder, make_vector
from filelock import FileLock

from poolgraph.errors import InputError, TruncationWarning
from poolgraph.graphs.manifest import FileRecord
from poolgraph.runtime.file_job import answer_file, check_output, cut_chunks
from poolgraph.runtime.file_sources import FileSource
from poolgraph.runtime.file_state import partial_path, state_path
from poolgraph.runtime.file_tasks import FILE_TASKS
from poolgraph.runtime.file_writers import JsonlWriter

SUFFIXES = [".npy", ".jsonl", ".parquet"]
TEXTS = [f"text {number}" for number in range(25)]


def embed_file(model, source, output, **options):
    return answer_file(model, FILE_TASKS["embed"], source, output, **options)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXTS))
    return FileSource(path=str(path))


def run(source, output, *, model=None, **options):
    return embed_file(model or FakeEmbedder(), source, output, chunk_size=4, **options)


def interrupt(source, output, *, fail_at=3):
    """Leave the output as a crash in chunk ``fail_at`` does."""
    with pytest.raises(RuntimeError, match="power cut"):
        run(source, output, model=FakeEmbedder(fail_at=fail_at))


def names(output):
    return sorted(path.name for path in output.parent.iterdir() if path.name.startswith(output.name))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_whole_run(tmp_path, source, suffix):
    output, model, seen = tmp_path / f"out{suffix}", FakeEmbedder(), []
    options = {"prompt_name": "query", "dimensions": 8, "normalize": False, "truncate": True}
    summary = run(source, output, model=model, options=options, on_progress=seen.append)
    assert (summary.num_rows, summary.num_resumed) == (25, 0)
    assert [texts for texts, _ in model.calls] == [TEXTS[start : start + 4] for start in range(0, 25, 4)]
    keywords = {"prompt_name": "query", "dimensions": 8, "normalize": False, "truncate": True}
    assert all(options == keywords for _, options in model.calls)
    assert seen == [0, 4, 8, 12, 16, 20, 24, 25]
    assert names(output) == [output.name]


def test_the_vectors_are_the_models(tmp_path, source):
    run(source, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack([make_vector(text) for text in TEXTS]))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fail_at", [0, 1, 3, 6])
def test_resuming_gives_the_bytes_of_an_uninterrupted_run(tmp_path, source, suffix, fail_at):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    run(source, whole)
    interrupt(source, output, fail_at=fail_at)
    assert not output.exists()
    model, seen = FakeEmbedder(), []
    summary = run(source, output, model=model, resume=True, on_progress=seen.append)
    assert summary.num_resumed == 4 * fail_at == seen[0]
    assert sum(len(texts) for texts, _ in model.calls) == 25 - 4 * fail_at
    assert output.read_bytes() == whole.read_bytes()
    assert names(output) == [output.name]


def test_rows_of_a_torn_chunk_are_written_again(tmp_path, source):
    run(source, tmp_path / "whole.jsonl")
    output = tmp_path / "out.jsonl"
    interrupt(source, output)
    with partial_path(output).open("ab") as file:
        file.write(b'{"index": 12, "embedd')
    run(source, output, resume=True)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_that_failed_at_the_last_step_is_finished(tmp_path, source, monkeypatch):
    run(source, tmp_path / "whole.jsonl")
    output = tmp_path / "out.jsonl"

    def fail(self, output):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JsonlWriter, "finish", fail)
        with pytest.raises(InputError, match=r"cannot write .*out\.jsonl: No space left on device.*--resume"):
            run(source, output)
    model = FakeEmbedder()
    assert run(source, output, model=model, resume=True).num_resumed == 25
    assert model.calls == []
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_resume_without_anything_to_resume_just_runs(tmp_path, source):
    assert run(source, tmp_path / "out.npy", resume=True).num_resumed == 0


def test_an_interrupted_run_is_not_silently_started_over(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output)
    with pytest.raises(InputError, match=r"out\.npy was begun and interrupted; give --resume to continue, or --force"):
        run(source, output)
    summary = run(source, output, overwrite=True)
    assert (summary.num_resumed, summary.num_rows) == (0, 25)


def test_the_input_is_never_replaced(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "precious"}\n')
    with pytest.raises(InputError, match=r"in\.jsonl is the input itself; name another file for the answers"):
        run(FileSource(path=str(path)), tmp_path / "." / "in.jsonl", overwrite=True)
    assert path.read_text() == '{"text": "precious"}\n'


def test_a_finished_output_is_not_silently_replaced(tmp_path, source):
    output = tmp_path / "out.npy"
    output.write_text("precious")
    for options in ({}, {"resume": True}):
        with pytest.raises(InputError, match=r"out\.npy exists already; give --force"):
            run(source, output, **options)
    assert output.read_text() == "precious"
    run(source, output, overwrite=True)
    assert len(np.load(output)) == 25


def test_the_old_output_stays_until_the_new_one_is_complete(tmp_path, source):
    output = tmp_path / "out.npy"
    output.write_text("precious")
    with pytest.raises(RuntimeError, match="power cut"):
        run(source, output, model=FakeEmbedder(fail_at=3), overwrite=True)
    assert output.read_text() == "precious"


def test_starting_over_forgets_the_old_state(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output, fail_at=5)
    with pytest.raises(RuntimeError, match="power cut"):
        run(source, output, model=FakeEmbedder(fail_at=0), overwrite=True)
    assert not state_path(output).exists()
    assert run(source, output, resume=True).num_resumed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"files": {"onnx/model.onnx": FakeEmbedder().manifest.files["onnx/weights.data"]}}},
            "artifact",
        ),
        ({"model": {"prompts": {"query": "other: "}}}, "artifact was"),
        ({"options": {"truncate": True}}, "truncate was None and is True"),
        ({"options": {"prompt": "p: ", "normalize": False}}, "prompt was None and is 'p: '; normalize was None"),
        ({"chunk_size": 5}, "chunk_size was 4 and is 5"),
        ({"source": {"file_format": "txt"}}, "file_format was None and is 'txt'"),
    ],
)
def test_another_job_is_not_continued(tmp_path, source, change, message):
    output = tmp_path / "out.npy"
    interrupt(source, output)
    model = FakeEmbedder(**change.get("model", {}))
    changed = msgspec.structs.replace(source, **change.get("source", {}))
    options = {"options": change.get("options"), "chunk_size": change.get("chunk_size", 4)}
    with pytest.raises(InputError, match=f"out.npy cannot be resumed: .*{message}.*--force to start over"):
        embed_file(model, changed, output, resume=True, **options)


@pytest.mark.parametrize(("content", "message"), [("shorter", "input_bytes was"), (None, "input_modified_ns was")])
def test_another_input_is_not_continued(tmp_path, source, content, message):
    output, path = tmp_path / "out.npy", Path(source.path)
    interrupt(source, output)
    if content is None:
        os.utime(path, (1, 1))
    else:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        run(source, output, resume=True)


def test_time_stamps_and_reports_of_the_artifact_do_not_matter(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output)
    files = MANIFEST.files | {"README.md": FileRecord(size=1, sha256="33" * 32)}
    model = FakeEmbedder(created="2027-01-01T00:00:00Z", files=files)
    assert run(source, output, model=model, resume=True).num_resumed == 12


def test_a_damaged_state(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output)
    state = state_path(output).read_text()
    for text, message in (
        (state[:-20], "is not readable"),
        (state.replace('"version":2', '"version":1'), "has version 1; this poolgraph reads 2"),
        (state.replace('"size_bytes":', '"size_bytes":9'), "is shorter than recorded"),
    ):
        state_path(output).write_text(text)
        with pytest.raises(InputError, match=f"{message}.*--force to start over"):
            run(source, output, resume=True)


def test_a_partial_file_without_state_starts_at_the_beginning(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output)
    state_path(output).unlink()
    summary = run(source, output)
    assert (summary.num_resumed, summary.num_rows) == (0, 25)


def test_standard_input_cannot_be_resumed(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output)
    with pytest.raises(InputError, match="texts from standard input cannot be resumed"):
        run(FileSource(path="-"), output, resume=True)


def test_two_processes_on_one_output(tmp_path, source):
    output = tmp_path / "out.npy"
    with FileLock(tmp_path / "out.npy.lock"), pytest.raises(InputError, match="being written by another process"):
        run(source, output)
    assert not partial_path(output).exists()


def test_a_bad_text_is_found_in_the_input(tmp_path, source):
    Path(source.path).write_text("\n".join([*TEXTS[:9], "too long", "end"]))
    with pytest.raises(InputError, match=r"^text 9 has 999 tokens"):
        run(source, tmp_path / "out.npy")


def test_cut_texts_are_warned_of_once_with_the_total(tmp_path, source):
    Path(source.path).write_text("\n".join(["cut 1", *TEXTS[:9], "cut 2", "cut 3"]))
    with pytest.warns(TruncationWarning, match=r"^3 of 12 texts were longer than 256 tokens and were cut$") as caught:
        run(source, tmp_path / "out.npy", options={"truncate": True})
    assert len(caught) == 1


def test_options_are_checked_before_anything_is_touched(tmp_path, source):
    output, model = tmp_path / "out.npy", FakeEmbedder()
    interrupt(source, output)
    before = state_path(output).read_bytes()
    with pytest.raises(InputError, match=r"^no prompt 'nope'$"):
        run(source, output, model=model, options={"prompt_name": "nope"}, overwrite=True)
    assert state_path(output).read_bytes() == before
    assert model.calls == []


def test_a_run_that_failed_before_anything_was_recorded_leaves_nothing(tmp_path, source):
    output = tmp_path / "out.npy"
    interrupt(source, output, fail_at=0)
    assert names(output) == []
    assert run(source, output).num_rows == 25


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent/out.npy", r"the folder .*absent does not exist"),
        ("out.txt", r"written as \.npy, \.jsonl, \.parquet, not '\.txt'"),
        ("folder.npy", r"folder\.npy is a folder"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, source, name, message):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / name, array="embedding")


def test_a_missing_input(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*absent\.txt"):
        run(FileSource(path=str(tmp_path / "absent.txt")), tmp_path / "out.npy")


def test_chunks_end_at_either_limit():
    items = [(text,) for text in ["aa", "bb", "cccccc", "d", "", "", "e"]]
    assert list(cut_chunks(items, chunk_size=3, max_characters=6)) == [items[:3], items[3:6], items[6:]]
    assert list(cut_chunks(items, chunk_size=9, max_characters=6)) == [items[:3], items[3:]]
    assert list(cut_chunks([], chunk_size=3, max_characters=6)) == []
    pairs = [("aa", ["bb", "cc"]), ("d", ["e"]), ("f", ["g", "hhh"])]
    assert list(cut_chunks(pairs, chunk_size=9, max_characters=6)) == [pairs[:1], pairs[1:]]


CHILD = """
import sys
from pathlib import Path
from fake_embedder import FakeEmbedder
from poolgraph.runtime.file_job import answer_file
from poolgraph.runtime.file_sources import FileSource
from poolgraph.runtime.file_tasks import FILE_TASKS

model = FakeEmbedder(seconds_per_chunk=0.05)
answer_file(model, FILE_TASKS["embed"], FileSource(path=sys.argv[1]), Path(sys.argv[2]), chunk_size=1)
"""


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_killed_process_is_continued(tmp_path, source, suffix):
    output, whole = tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, source.path, str(output)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not state_path(output).exists() or json.loads(state_path(output).read_bytes())["num_rows"] < 3:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert not output.exists()
    embed_file(FakeEmbedder(), source, whole, chunk_size=1)
    summary = embed_file(FakeEmbedder(), source, output, chunk_size=1, resume=True)
    assert 3 <= summary.num_resumed < 25
    assert output.read_bytes() == whole.read_bytes()
    assert names(output) == [output.name]
