"""Exports whose precision is open: each target's own, and bf16 where fp16 does not hold the model's numbers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from native_graphs import FLOAT32
from overflowing_weights import overflowing
from tiny_decoders import save_decoder

from poolgraph.cli import main
from poolgraph.errors import ExportError, Float16RangeError
from poolgraph.export import exporter, half
from poolgraph.export.exporter import export_model
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.providers import CUDA_PROVIDER
from poolgraph.runtime.session import provider_loads

pytestmark = [
    pytest.mark.skipif(provider_loads(CUDA_PROVIDER), reason="these exports are of a machine without"),
    pytest.mark.usefixtures("one_trace_each"),
]

IN_FLOAT32 = ("portable_fp32", *(name for name in FLOAT32 if name != "portable_fp32"))

IN_BF16 = r"^exporting in bf16 in the place of fp16: "


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "texts.txt"
    file.write_text("one text\nanother text about a quick brown fox\na third one")
    return file


def names(artifact: Path) -> list[str]:
    return [variant.name for variant in open_artifact(artifact, check_hashes="all").variants]


def test_a_gpu_gets_fp16_beside_the_cpus_fp32(checkpoint: Path, calibration: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    command = ["export", str(checkpoint), "-o", str(artifact), "--target", "cuda,cpu"]
    assert main([*command, "--calibration", str(calibration)]) == 0
    assert names(artifact) == [*IN_FLOAT32, "cuda_packed_fp16", "cuda_fp16"]


def test_a_model_that_is_refused_in_fp16_is_bf16_without_a_word(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "checkpoint", "Gemma2Model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_model(folder, tmp_path / "artifact", convert="embed", targets=("cuda",))
    assert names(tmp_path / "artifact") == ["portable_fp32", "cuda_bf16"]


def test_many_values_beyond_the_range_make_the_gpus_bf16_alone(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    wide, stages = overflowing(checkpoint, tmp_path / "wide", "dense.weight", 1e6), []
    options = {"targets": ("cpu", "cuda"), "calibration": calibration, "on_stage": stages.append}
    with pytest.warns(UserWarning, match=IN_BF16 + r"\d+ of \d+ values go beyond .* 65,504: .* and more$") as caught:
        artifact = export_model(wide, tmp_path / "artifact", **options).path
    assert [warning.filename for warning in caught] == [__file__]
    assert names(artifact) == [*IN_FLOAT32, "cuda_bf16"]
    assert stages.count("read the checkpoint") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "wide"]


def test_a_value_that_a_kernel_reads_in_fp16_alone_makes_it_bf16(calibration: Path, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "checkpoint", "Qwen3Model")
    wide = overflowing(folder, tmp_path / "wide", "layers.1.self_attn.v_proj.weight", 1e6)
    options = {"targets": ("cuda",), "calibration": calibration}
    with pytest.raises(Float16RangeError, match="would leave the GPU at"):
        export_model(wide, tmp_path / "artifact", precisions=("fp16",), **options)
    with pytest.warns(UserWarning, match=IN_BF16 + r".* would leave the GPU at .*beyond the range of fp16, are [^;]*$"):
        export_model(wide, tmp_path / "artifact", **options)
    assert names(tmp_path / "artifact") == ["portable_fp32", "cuda_bf16"]


def test_a_weight_beyond_the_range_makes_it_bf16(checkpoint: Path, calibration: Path, tmp_path: Path) -> None:
    """The norm in front of it makes what it is multiplied with 0, so that no value is beyond."""
    large = overflowing(checkpoint, tmp_path / "large", "layer.1.attention.self.key.weight", 1e7)
    wide = overflowing(large, tmp_path / "wide", ("layer.0.output.LayerNorm.weight", "LayerNorm.bias"), 0.0)
    options = {"targets": ("cuda",), "calibration": calibration}
    with pytest.warns(
        UserWarning, match=IN_BF16 + r"the weight .*layer\.1.* numbers beyond the range of float16 .*\)$"
    ):
        export_model(wide, tmp_path / "artifact", **options)
    assert names(tmp_path / "artifact") == ["portable_fp32", "cuda_bf16"]


def test_a_checkpoint_too_large_to_run_is_bf16_where_its_first_layers_are_beyond_the_range(
    checkpoint: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "MOST_KEPT", 1.0)
    wide = overflowing(checkpoint, tmp_path / "wide", "layer.0.output.dense.weight", 5e4)
    options = {"targets": ("cuda",), "calibration": calibration, "max_memory": 1e-6}
    with pytest.warns(UserWarning, match=IN_BF16 + r"in the first \d+ layers 2 values go .* run here as a whole$"):
        result = export_model(wide, tmp_path / "artifact", **options)
    assert "a twin of the first" in result.report.reference
    assert names(tmp_path / "artifact") == ["portable_fp32", "cuda_bf16"]


@pytest.mark.parametrize(
    ("precisions", "error"),
    [(("fp16",), Float16RangeError), (("fp16", "bf16"), Float16RangeError), (None, ExportError)],
)
def test_nothing_else_is_tried_again(
    precisions: tuple[str, ...] | None, error: type[ExportError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fail(*_: object, **options: object) -> None:
        attempts.append(options)
        raise error("no reason")

    monkeypatch.setattr(exporter, "_export", fail)
    with pytest.raises(error, match="no reason"):
        export_model("owner/name", tmp_path / "artifact", targets=("cuda",), precisions=precisions)
    assert len(attempts) == 1
