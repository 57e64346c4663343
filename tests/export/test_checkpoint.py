"""Checkpoints on disk: which are found, how their tensors are read, and what is refused without running it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from poolgraph.errors import ExportError, InputError
from poolgraph.export.checkpoint import Checkpoint, WeightFolder, open_checkpoint

TENSORS = {
    "encoder.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "encoder.bias": torch.tensor([1.0, 2.0]),
    "pooler.weight": torch.ones(2, dtype=torch.float16),
}
NAMES = list(TENSORS)


def write_sharded(folder: Path, stem: str, suffix: str) -> None:
    """Two shards and their index, as transformers writes them."""
    shards = {f"{stem}-00001-of-00002{suffix}": NAMES[:1], f"{stem}-00002-of-00002{suffix}": NAMES[1:]}
    for shard, names in shards.items():
        tensors = {name: TENSORS[name] for name in names}
        save_file(tensors, folder / shard) if suffix == ".safetensors" else torch.save(tensors, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write(folder: Path, kind: str) -> None:
    match kind:
        case "safetensors":
            save_file(TENSORS, folder / "model.safetensors")
        case "sharded safetensors":
            write_sharded(folder, "model", ".safetensors")
        case "bin":
            torch.save(TENSORS, folder / "pytorch_model.bin")
        case "sharded bin":
            write_sharded(folder, "pytorch_model", ".bin")


@pytest.mark.parametrize("kind", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
def test_tensors_by_name(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    weights = WeightFolder(tmp_path)
    assert weights.names == set(TENSORS)
    assert len(weights.files) == (2 if "sharded" in kind else 1)
    for name, expected in TENSORS.items():
        found = weights.load(name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_safetensors_win_over_bin(tmp_path: Path) -> None:
    write(tmp_path, "safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert WeightFolder(tmp_path).names == set(TENSORS)


def test_views_in_a_bin_are_read_whole(tmp_path: Path) -> None:
    base = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    torch.save({"a": base, "b": base.T}, tmp_path / "pytorch_model.bin")
    found = WeightFolder(tmp_path).load("b")
    assert torch.equal(found, base.T)
    assert found.is_contiguous()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["torch.save", "old torch.save", "pickle"])
def test_pickled_code_in_a_bin_is_refused_and_does_not_run(tmp_path: Path, way: str) -> None:
    sprung, file = tmp_path / "sprung", tmp_path / "pytorch_model.bin"
    content = {"encoder.weight": torch.ones(1), "trap": Trap(sprung)}
    if way == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=way == "torch.save")
    with pytest.raises(ExportError, match=r"pytorch_model\.bin cannot be read as a file of tensors"):
        WeightFolder(tmp_path)
    assert not sprung.exists()


def test_missing_shard(tmp_path: Path) -> None:
    write(tmp_path, "sharded safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ExportError, match=r"index\.json names \['model-00002-of-00002\.safetensors'\]"):
        WeightFolder(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no weights in .*: looked for model\.safetensors, pytorch_model\.bin"):
        WeightFolder(tmp_path)


def test_an_artifact_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "poolgraph.json").write_text("{}")
    with pytest.raises(InputError, match="is an artifact already; export the checkpoint that it was made from"):
        WeightFolder(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_files_that_are_no_tensors(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} cannot be read"):
        WeightFolder(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 1}'])
def test_index_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ExportError, match=r"model\.safetensors\.index\.json"):
        WeightFolder(tmp_path)


def test_index_that_leaves_the_checkpoint(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "../secret.safetensors")}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="secret"):
        WeightFolder(inner)


# --- finding a checkpoint


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.folder, checkpoint.model, checkpoint.revision) == (folder, "my-model", None)
    assert checkpoint.read_json("config.json") == {"model_type": "bert"}
    assert checkpoint.read_json("modules.json") is None


def test_folder_with_modules_alone(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    assert open_checkpoint(tmp_path).folder == tmp_path


def test_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has neither config\.json nor modules\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("model", ["no/such-model", "./no/such/folder/at/all", "no-such-model", ""])
def test_neither_a_folder_nor_a_model_of_the_hub(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        open_checkpoint(model)


def test_hub_id_and_revision_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'no/such-model' is neither a folder here nor a model .* at revision v9"):
        open_checkpoint("no/such-model", "v9")


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    checkpoint = Checkpoint(folder=tmp_path, model="m", revision=None)
    with pytest.raises(ExportError, match=r"config\.json of checkpoint 'm' is not valid JSON"):
        checkpoint.read_json("config.json")
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ExportError, match=r"config\.json of checkpoint 'm' is not valid JSON"):
        checkpoint.read_json("config.json")


def content_hash(folder: Path) -> str:
    return Checkpoint(folder=folder, model="m", revision=None).content_hash


def test_content_hash_covers_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "1_Pooling").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "1_Pooling" / "config.json").write_text("{}")
    first = content_hash(tmp_path / "one")
    assert content_hash(tmp_path / "two") == first
    (tmp_path / "two" / "onnx").mkdir()
    (tmp_path / "two" / "onnx" / "model.onnx").write_text("another build")
    assert content_hash(tmp_path / "two") == first
    (tmp_path / "two" / "config.json").write_text("{ }")
    assert content_hash(tmp_path / "two") != first
    (tmp_path / "one" / "config.json").rename(tmp_path / "one" / "renamed.json")
    assert content_hash(tmp_path / "one") != first


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_is_no_checkpoint(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text("{}")
    if config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        open_checkpoint(tmp_path)
