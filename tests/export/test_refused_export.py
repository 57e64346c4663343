"""Exports that are refused: by their inputs before any work, by the gate after it; nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from native_graphs import FLOAT32
from safetensors.torch import load_file, save_file
from tiny_models import HeadSpec, save_checkpoint

from poolgraph import PoolingModel
from poolgraph.errors import ExportError, InputError, VerificationError
from poolgraph.export import compile as compile_module
from poolgraph.export.exporter import export_model
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.graphs.artifact import open_artifact

pytestmark = pytest.mark.usefixtures("one_trace_each")


def assert_refused(error: type[Exception], match: str, checkpoint: Path, output: Path, **options: object) -> None:
    with pytest.raises(error, match=match):
        export_model(checkpoint, output, **options)  # type: ignore[arg-type]
    assert not output.exists()
    assert list(output.parent.iterdir()) == []


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "artifact"


def test_module_that_cannot_be_compiled(tmp_path: Path, output: Path) -> None:
    made = save_checkpoint(tmp_path / "checkpoint", "BertModel", HeadSpec(modules=(("LSTM", {}, {}),)))
    assert_refused(ExportError, r"sentence_transformers\.models\.LSTM' at '2_LSTM'", made, output)


def test_activation_that_is_not_torchs_own(tmp_path: Path, output: Path) -> None:
    dense = ("Dense", {"in_features": 32, "out_features": 4, "activation_function": "os.system"}, {})
    made = save_checkpoint(tmp_path / "checkpoint", "BertModel", HeadSpec(modules=(dense,)))
    assert_refused(ExportError, "activation function 'os.system'", made, output)


def test_wrong_options(checkpoint: Path, output: Path, tmp_path: Path) -> None:
    assert_refused(InputError, "--task translate is unknown", checkpoint, output, task="translate")
    assert_refused(InputError, "--target tpu is not offered", checkpoint, output, targets=("tpu",))
    assert_refused(InputError, "no such folder", tmp_path / "nothing", output)


@pytest.mark.slow
def test_missing_tensors_are_all_named(checkpoint: Path, tmp_path: Path, output: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    lost = {"encoder.layer.0.output.dense.weight", "embeddings.LayerNorm.bias"}
    kept = {k: v for k, v in load_file(checkpoint / "model.safetensors").items() if k not in lost}
    save_file(kept, tmp_path / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="the checkpoint lacks 2 tensors of the model") as caught:
        export_model(tmp_path / "checkpoint", output)
    assert all(name in str(caught.value) for name in lost)
    assert list(output.parent.iterdir()) == []


# --- the gate


def change_a_weight(directory: Path) -> None:
    """Add one to one number of a feed-forward layer in the file of weights."""
    tensors = onnx.load(directory / "model.onnx", load_external_data=False).graph.initializer
    tensor = next(t for t in tensors if "intermediate.dense.weight" in t.name and t.external_data)
    offset = int({entry.key: entry.value for entry in tensor.external_data}["offset"])
    with (directory / "weights.data").open("r+b") as file:
        file.seek(offset)
        number = np.frombuffer(file.read(4), np.float32)
        file.seek(offset)
        file.write((number + 1).tobytes())


@pytest.fixture
def damaged_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    original = compile_module.save_graphs

    def save(models, directory, weights_file):
        original(models, directory, weights_file)
        change_a_weight(directory)

    monkeypatch.setattr(compile_module, "save_graphs", save)


@pytest.mark.slow
@pytest.mark.usefixtures("damaged_weight")
def test_changed_weight_fails_verification_and_leaves_nothing(checkpoint: Path, output: Path) -> None:
    with pytest.raises(VerificationError, match=r"of .* checks .* failed") as caught:
        export_model(checkpoint, output)
    for line in ("portable_fp32 sequence alone", f"{FLOAT32[0]} token in batches"):
        assert line in str(caught.value)
    assert "equal ids" not in str(caught.value)
    assert list(output.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("damaged_weight")
def test_min_cosine_overrides_the_gate_and_is_recorded(checkpoint: Path, output: Path) -> None:
    result = export_model(checkpoint, output, min_cosine=0.1)
    found = open_artifact(output, check_hashes="all")
    assert found.options == {"min_cosine": "0.1"}
    assert found.report == result.report
    rows = [row for row in found.report.rows if row.variant != "tokenizer" and row.check != "same bits in batches"]
    assert rows
    assert {row.required_cosine for row in rows} == {0.1}
    assert min(row.min_cosine for row in rows) < 0.99999
    with PoolingModel.load(output) as model:
        assert np.isfinite(model.embed(PROBE_SENTENCES)).all()


@pytest.mark.slow
def test_changed_tokenizer_fails_verification(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = compile_module.save_tokenizer

    def save(tokenizer, source, directory, probes):
        original(tokenizer, source, directory, probes)
        file = directory / "tokenizer.json"
        content = json.loads(file.read_text())
        content["normalizer"]["lowercase"] = False
        file.write_text(json.dumps(content))

    monkeypatch.setattr(compile_module, "save_tokenizer", save)
    with pytest.raises(VerificationError, match="tokenizer ids equal ids"):
        export_model(checkpoint, output, targets=())
    assert list(output.parent.iterdir()) == []
