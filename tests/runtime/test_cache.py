import os
import subprocess
import sys
from pathlib import Path

import pytest

import poolgraph.runtime.cache
from poolgraph.errors import ExportError, InputError, VerificationError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.runtime.cache import cache_dir, plan_export, resolve_artifact, run_export_command
from poolgraph.runtime.checkpoint_hash import REMEMBERED_FROM_BYTES, hash_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("POOLGRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"0" * REMEMBERED_FROM_BYTES)
    return folder


class Exports:
    """Stands for the exporter: makes a directory with a manifest and counts."""

    def __init__(self):
        self.requests = []

    def __call__(self, request, on_line):
        self.requests.append(request)
        request.output.mkdir()
        (request.output / "poolgraph.json").write_text("{}")


def test_an_artifact_is_returned_as_it_is(artifact, cache):
    assert resolve_artifact(str(artifact), revision="x", options={"task": "embed"}) == artifact
    assert not cache.exists()


def test_a_checkpoint_is_exported_once(checkpoint, cache):
    exports = Exports()
    path = resolve_artifact(checkpoint, options={"task": "embed"}, run_export=exports)
    assert resolve_artifact(str(checkpoint), options={"task": "embed"}, run_export=exports) == path
    assert path.is_relative_to(cache / "artifacts")
    assert path.name.startswith("tiny-model-")
    assert len(exports.requests) == 1


def test_a_hub_id_is_exported_once_for_each_revision():
    exports = Exports()
    paths = [
        resolve_artifact("intfloat/e5-small", revision=revision, run_export=exports) for revision in (None, "v1", None)
    ]
    assert paths[0] == paths[2] != paths[1]
    assert [request.revision for request in exports.requests] == [None, "v1"]
    assert paths[0].name.startswith("intfloat--e5-small-")


def key_of(model, **options) -> str:
    return plan_export(model, **options).output.name


def test_the_key_covers_content_options_and_version_and_no_place(checkpoint, tmp_path, monkeypatch):
    key = key_of(checkpoint)
    moved = tmp_path / "elsewhere" / checkpoint.name
    moved.parent.mkdir()
    moved.mkdir()
    for file in checkpoint.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / ".git").mkdir()
    (moved / ".git" / "HEAD").write_text("hidden files do not count")
    assert key_of(moved) == key
    assert key_of(checkpoint, options={"task": "embed"}) != key
    assert key_of(checkpoint, options={"a": "1", "b": "2"}) == key_of(checkpoint, options={"b": "2", "a": "1"})
    (moved / "config.json").write_text("[]")
    assert key_of(moved) != key
    monkeypatch.setattr(poolgraph.runtime.cache, "__version__", "99")
    assert key_of(checkpoint) != key


def test_large_files_are_hashed_once(checkpoint, tmp_path):
    memory = tmp_path / "hashes.json"
    weights = checkpoint / "model.safetensors"
    before = hash_checkpoint(checkpoint, memory_file=memory)
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    weights.write_bytes(b"1" * REMEMBERED_FROM_BYTES)
    os.utime(weights, ns=times)
    assert hash_checkpoint(checkpoint, memory_file=memory) == before, "same size and time: taken from memory"
    os.utime(weights, ns=(times[0], times[1] + 1))
    assert hash_checkpoint(checkpoint, memory_file=memory) != before
    assert [file.name for file in tmp_path.glob("hashes*")] == ["hashes.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_memory_is_started_afresh(checkpoint, tmp_path, content):
    memory = tmp_path / "hashes.json"
    expected = hash_checkpoint(checkpoint, memory_file=tmp_path / "other.json")
    memory.write_text(content)
    assert hash_checkpoint(checkpoint, memory_file=memory) == expected
    assert memory.read_text() != content


@pytest.mark.parametrize("model", ["", "owner/..", "a b", Path("x")])
def test_neither_folder_nor_hub_id(model):
    with pytest.raises(InputError, match=r"is neither a folder .* nor a hub id such as 'owner/name'"):
        resolve_artifact(model, run_export=Exports())


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(
        InputError, match=r"neither an artifact \(no poolgraph.json\) nor a checkpoint \(no config.json"
    ):
        resolve_artifact(tmp_path, run_export=Exports())


def test_an_export_without_an_artifact_is_an_error(checkpoint):
    with pytest.raises(ExportError, match="ended without an artifact"):
        resolve_artifact(checkpoint, run_export=lambda request, on_line: None)


def test_a_failed_export_leaves_nothing_and_can_be_tried_again(checkpoint):
    def fail(request, on_line):
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        resolve_artifact(checkpoint, run_export=fail)
    assert resolve_artifact(checkpoint, run_export=Exports()).is_dir()


def test_the_command_line_of_the_child():
    request = plan_export("owner/name", revision="v1", options={"trust_remote_code": "true", "task": "embed"})
    assert request.command() == [
        *(sys.executable, "-m", "poolgraph.cli", "export", "owner/name", "-o", str(request.output)),
        *("--revision", "v1", "--task", "embed", "--trust-remote-code"),
    ]


def run_child(code: str, on_line=None) -> None:
    run_export_command([sys.executable, "-c", f"import os, sys\n{code}"], "owner/name", on_line)


def test_lines_of_the_child_are_handed_on_as_they_come():
    lines = []
    run_child("print('on stdout'); print('stage 1', file=sys.stderr); print('stage 2', file=sys.stderr)", lines.append)
    assert lines == ["stage 1", "stage 2"]


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "sys.exit('poolgraph: no such model')",
            ExportError,
            "owner/name failed with exit code 1: poolgraph: no such m",
        ),
        ("print('cosine 0.9', file=sys.stderr); sys.exit(3)", VerificationError, "exit code 3: cosine 0.9"),
        ("os.kill(os.getpid(), 9)", ExportError, "exit code -9: it printed no error"),
        ("import torch_is_not_here", ExportError, r'(?s)No module named .*pip install "poolgraph\[export\]"'),
        ("[print(f'line {i}', file=sys.stderr) for i in range(50)]; sys.exit(2)", ExportError, "2: line 30\nline 31"),
    ],
)
def test_failures_of_the_child(code, kind, message):
    with pytest.raises(ExportError, match=message) as caught:
        run_child(code)
    assert type(caught.value) is kind


def test_an_error_of_the_child_is_told_once():
    lines = []
    with pytest.raises(ExportError) as caught:
        run_child("print('stage 1', file=sys.stderr); sys.exit('poolgraph: error: no such model\\nmore')", lines.append)
    assert str(caught.value) == "exporting owner/name failed with exit code 1: no such model\nmore"
    assert lines == ["stage 1"]


def test_an_interrupted_caller_ends_its_child():
    pids = []

    def interrupt(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child("import time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_the_cure_for_a_missing_extra_is_said_once():
    with pytest.raises(ExportError) as caught:
        run_child("""sys.exit('No module named torch; pip install "poolgraph[export]"')""")
    assert str(caught.value).count("poolgraph[export]") == 1


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from poolgraph.runtime.cache import resolve_artifact

def export(request, on_line):
    with open(sys.argv[2], "a") as log:
        log.write("export\\n")
    time.sleep(0.5)
    draft = request.output.with_name("draft")
    draft.mkdir()
    (draft / "poolgraph.json").write_text("{}")
    draft.rename(request.output)

print(resolve_artifact(sys.argv[1], run_export=export, on_line=lambda line: print(line, file=sys.stderr)))
"""


def test_two_processes_at_once_make_one_export(checkpoint, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", TWO_AT_ONCE, str(checkpoint), str(log)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert answers[0][0] == answers[1][0]
    assert log.read_text() == "export\n"
    assert "another process is exporting this model" in "".join(errors for _, errors in answers)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("POOLGRAPH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "poolgraph"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "poolgraph"


@pytest.mark.slow
def test_the_real_exporter_fills_the_cache_and_nothing_half_made_stays(cache, tmp_path):
    from tiny_models import save_checkpoint

    lines = []
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "BertModel")
    path = resolve_artifact(checkpoint, on_line=lines.append)
    assert is_artifact(path)
    assert lines
    assert resolve_artifact(checkpoint, on_line=pytest.fail) == path
    assert {entry.suffix for entry in path.parent.iterdir() if entry != path} == {".lock"}
