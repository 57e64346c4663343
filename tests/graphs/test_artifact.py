"""The artifact's directory: what opens, what does not, and what a failed or killed writer leaves behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from poolgraph.errors import ArtifactError, ManifestError
from poolgraph.graphs.artifact import (
    hash_file,
    is_artifact,
    open_artifact,
    record_files,
    save_manifest,
    staged_directory,
)
from poolgraph.graphs.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Graph,
    Limits,
    Manifest,
    Pooler,
    Report,
    Source,
    Tensor,
    Tokenization,
    Variant,
    encode_manifest,
)

FILES = {"onnx/model.onnx": b"graph", "onnx/weights.data": b"weights", "tokenizer.json": b"{}"}


def make_manifest(files: dict[str, FileRecord], graph: str = "onnx/model.onnx") -> Manifest:
    tensor = Tensor(name="pooled", dtype="float32", shape=("batch_size", 4))
    variant = Variant(
        name="portable_fp32",
        target="portable",
        precision="fp32",
        layout="padded",
        providers=("CPUExecutionProvider",),
        graphs={"sequence": Graph(file=graph, inputs=(), outputs=(tensor,), raw_output="pooled")},
    )
    return Manifest(
        poolgraph_version="0.1.0",
        created="2026-11-01T00:00:00+00:00",
        source=Source(model="some/model", revision=None, content_hash="0" * 64),
        architecture="BertModel",
        tasks=("embed",),
        default_task="embed",
        pooler=Pooler(pooling=("mean",), embedding_size=4),
        limits=Limits(max_model_len=8, vocab_size=10),
        tokenization=Tokenization(pad_token_id=0),
        variants=(variant,),
        report=Report(reference="torch"),
        files=files,
    )


def fill(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    save_manifest(directory, make_manifest(record_files(directory)))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = tmp_path / "artifact"
    directory.mkdir()
    fill(directory)
    return directory


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- opening


def test_open(artifact: Path) -> None:
    for check in ("graphs", "all"):
        manifest = open_artifact(artifact, check_hashes=check)
        assert set(manifest.files) == set(FILES)
    assert open_artifact(str(artifact)) == manifest
    assert is_artifact(artifact)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing is not a directory; make an artifact with `poolgraph export"):
        open_artifact(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is not a directory"):
        open_artifact(tmp_path / "file")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no poolgraph\.json"):
        open_artifact(tmp_path)
    assert not is_artifact(tmp_path)


def test_manifest_that_cannot_be_read(artifact: Path) -> None:
    (artifact / MANIFEST_FILE).write_bytes((artifact / MANIFEST_FILE).read_bytes()[:-20])
    with pytest.raises(ManifestError):
        open_artifact(artifact)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing from the artifact .*; export the checkpoint again"):
        open_artifact(artifact)


@pytest.mark.parametrize("name", FILES)
def test_wrong_size(artifact: Path, name: str) -> None:
    (artifact / name).write_bytes(FILES[name][:-1])
    with pytest.raises(ArtifactError, match=rf"{name} has {len(FILES[name]) - 1} bytes, the manifest says"):
        open_artifact(artifact)


def test_changed_graph_is_always_found(artifact: Path) -> None:
    (artifact / "onnx/model.onnx").write_bytes(b"grapH")
    with pytest.raises(ArtifactError, match=r"onnx/model\.onnx does not have the SHA-256"):
        open_artifact(artifact)


def test_changed_weights_are_found_when_all_hashes_are_checked(artifact: Path) -> None:
    (artifact / "onnx/weights.data").write_bytes(b"weighTs")
    open_artifact(artifact)
    with pytest.raises(ArtifactError, match=r"weights\.data does not have the SHA-256"):
        open_artifact(artifact, check_hashes="all")


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "onnx/../../outside", "..\\outside", "C:/outside"])
@pytest.mark.parametrize("place", ["files", "graph"])
def test_path_that_leaves_the_directory(artifact: Path, name: str, place: str) -> None:
    (artifact.parent / "outside").write_bytes(b"graph")
    files = record_files(artifact)
    files[name] = FileRecord(size=5, sha256=hash_file(artifact.parent / "outside"))
    graph = name if place == "graph" else "onnx/model.onnx"
    (artifact / MANIFEST_FILE).write_bytes(encode_manifest(make_manifest(files, graph)))
    with pytest.raises(ArtifactError, match="a path that leaves the artifact"):
        open_artifact(artifact)


def test_graph_that_the_list_of_files_lacks(artifact: Path) -> None:
    (artifact / "extra.onnx").write_bytes(b"graph")
    files = open_artifact(artifact).files
    (artifact / MANIFEST_FILE).write_bytes(encode_manifest(make_manifest(files, "extra.onnx")))
    with pytest.raises(ArtifactError, match=r"'extra\.onnx', which the manifest's list of files does not have"):
        open_artifact(artifact)


def test_link_that_leaves_the_directory(artifact: Path) -> None:
    outside = artifact.parent / "outside"
    outside.write_bytes(FILES["onnx/weights.data"])
    (artifact / "onnx/weights.data").unlink()
    (artifact / "onnx/weights.data").symlink_to(outside)
    with pytest.raises(ArtifactError, match="link that leaves the artifact"):
        open_artifact(artifact)


def test_folder_that_is_a_link_and_leaves_the_directory(artifact: Path) -> None:
    shutil.move(artifact / "onnx", artifact.parent / "elsewhere")
    (artifact / "onnx").symlink_to(artifact.parent / "elsewhere", target_is_directory=True)
    with pytest.raises(ArtifactError, match="leaves the artifact"):
        open_artifact(artifact)


def test_link_within_the_directory_and_link_to_the_directory(artifact: Path) -> None:
    (artifact / "weights").write_bytes(FILES["onnx/weights.data"])
    (artifact / "onnx/weights.data").unlink()
    (artifact / "onnx/weights.data").symlink_to("../weights")
    (artifact.parent / "current").symlink_to(artifact, target_is_directory=True)
    open_artifact(artifact.parent / "current", check_hashes="all")


# --- writing


def test_record_files(artifact: Path) -> None:
    records = record_files(artifact)
    assert list(records) == sorted(FILES)
    assert records["tokenizer.json"] == FileRecord(size=2, sha256=hash_file(artifact / "tokenizer.json"))


def test_save_manifest_replaces_in_one_step(artifact: Path) -> None:
    before = names(artifact)
    changed = msgspec.structs.replace(open_artifact(artifact), architecture="RobertaModel")
    save_manifest(artifact, changed)
    assert names(artifact) == before
    assert open_artifact(artifact) == changed


def test_staged_directory_takes_the_name(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artifact"
    with staged_directory(target) as staging:
        assert staging.parent == target.parent
        assert not target.exists()
        fill(staging)
    open_artifact(target)
    assert names(target.parent) == {"artifact"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_staged_directory_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staged_directory(Path("artifact")) as staging:
        fill(staging)
        monkeypatch.chdir("/")
    open_artifact(tmp_path / "artifact")


def fill_and_fail(target: Path, error: type[BaseException]) -> None:
    with staged_directory(target, overwrite=True) as staging:
        fill(staging)
        (staging / "new").write_bytes(b"")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fill_and_fail(tmp_path / "artifact", error)
    assert names(tmp_path) == set()


def test_exception_leaves_the_old_artifact(artifact: Path) -> None:
    before = open_artifact(artifact)
    with pytest.raises(RuntimeError):
        fill_and_fail(artifact, RuntimeError)
    assert open_artifact(artifact, check_hashes="all") == before
    assert "new" not in names(artifact)
    assert names(artifact.parent) == {"artifact"}


def test_overwrite(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match=r"already holds an artifact; pass --force \(overwrite=True\)"):
        staged_directory(artifact).__enter__()
    with staged_directory(artifact, overwrite=True) as staging:
        fill(staging)
        (staging / "new").write_bytes(b"")
    assert "new" in names(artifact)
    assert names(artifact.parent) == {"artifact"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_target_that_holds_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("content")
    for target in (folder, file):
        with pytest.raises(ArtifactError, match="exists and is not an artifact; choose another output directory"):
            staged_directory(target, overwrite=overwrite).__enter__()
    assert names(tmp_path) == {"folder", "file"}
    assert names(folder) == {"thesis.txt"}


def test_empty_directory_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    with staged_directory(tmp_path / "artifact") as staging:
        fill(staging)
    open_artifact(tmp_path / "artifact")
    assert names(tmp_path) == {"artifact"}


KILLED = """
import os, signal, sys
from pathlib import Path
from poolgraph.graphs.artifact import staged_directory
with staged_directory(Path(sys.argv[1]), overwrite=True) as staging:
    (staging / "onnx").mkdir()
    (staging / "onnx" / "model.onnx").write_bytes(b"graph")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_killed(target: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert process.returncode == -signal.SIGKILL


def test_kill_leaves_nothing_that_loads(tmp_path: Path) -> None:
    run_killed(tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    for left in tmp_path.iterdir():
        assert left.name.startswith(".artifact.")
        with pytest.raises(ArtifactError):
            open_artifact(left)
    with staged_directory(tmp_path / "artifact") as staging:  # what was left is in nobody's way
        fill(staging)
    open_artifact(tmp_path / "artifact")


def test_kill_leaves_the_old_artifact(artifact: Path) -> None:
    before = open_artifact(artifact)
    run_killed(artifact)
    assert open_artifact(artifact, check_hashes="all") == before
