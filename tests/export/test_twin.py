"""The twin: chosen by memory, made of the first layers, and a check of every stored tensor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from tiny_decoders import save_decoder

from poolgraph import PoolingModel
from poolgraph.export.exporter import export_model
from poolgraph.export.twin import WeightSizes, choose_twin, compare_stored, measure_weights
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.storage import INLINE_BYTES, save_graphs
from poolgraph.runtime.verify import verify_artifact

LITTLE = 1e-6
"""GiB: less than any model takes."""


def lazy(name: str, array: np.ndarray) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: ir.tensor(array, name=name), dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape))


@pytest.mark.parametrize(
    ("memory", "kinds", "layers"),
    [
        (2500, None, None),
        (2499, None, 8),
        (1000, None, 3),
        (1, None, 1),
        (-5, None, 1),
        (1, ["s", "s", "f", "s"], 3),
        (1000, ["s", "s", "s", "s", "s", "f"], 6),
    ],
)
def test_the_twin_is_as_deep_as_fits_and_shows_every_kind(
    memory: int, kinds: list[str] | None, layers: int | None
) -> None:
    sizes = WeightSizes(layer=100, rest=100, num_layers=9)
    config = SimpleNamespace(num_hidden_layers=9, layer_types=kinds)
    assert choose_twin(sizes, config, memory) == layers  # type: ignore[arg-type]


def test_the_twin_has_a_layer_of_experts() -> None:
    sizes = WeightSizes(layer=100, rest=100, num_layers=9)
    config = SimpleNamespace(num_hidden_layers=9, first_k_dense_replace=3)
    assert choose_twin(sizes, config, 1) == 4  # type: ignore[arg-type]


def test_weights_are_counted_by_layer() -> None:
    names = {"backbone.embed.weight": 10, "backbone.layers.0.a": 5, "backbone.layers.1.a": 5, "backbone.layers.1.b": 2}
    sources = {name: lazy(name, np.zeros(size, dtype=np.float32)) for name, size in names.items()}
    assert measure_weights(sources) == WeightSizes(layer=28, rest=40, num_layers=2)


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(INLINE_BYTES).astype(np.float32) for name in ("first", "second")}
    sources = {name: lazy(name, array) for name, array in arrays.items()}
    values = [ir.Value(name=name, const_value=tensor) for name, tensor in sources.items()]
    models = {"model.onnx": ir.Model(ir.Graph([], [], nodes=[], initializers=values), ir_version=10)}
    save_graphs(models, tmp_path, "weights.data")
    assert compare_stored(models, sources, tmp_path).passed
    content = bytearray((tmp_path / "weights.data").read_bytes())
    content[-3] ^= 1
    (tmp_path / "weights.data").write_bytes(content)
    row = compare_stored(models, sources, tmp_path)
    assert not row.passed
    assert row.check == "not as in the checkpoint: second"


@pytest.mark.slow
@pytest.mark.usefixtures("one_trace_each")
def test_a_checkpoint_too_large_is_verified_on_a_twin(tmp_path: Path) -> None:
    checkpoint = save_decoder(tmp_path / "checkpoint", "LlamaModel", num_hidden_layers=3)
    result = export_model(checkpoint, tmp_path / "artifact", max_memory=LITTLE)
    assert "a twin of the first 1 of 3 layers, and all stored tensors" in result.report.reference
    assert result.report.rows[0].check == "equal to the checkpoint"
    assert "a twin of the first 1 of 3 layers" in (result.path / "README.md").read_text()
    whole = export_model(checkpoint, tmp_path / "whole")
    assert "twin" not in whole.report.reference
    texts = ["a", "waves and ships", " ".join(["long"] * 20)]
    with PoolingModel.load(result.path) as twin, PoolingModel.load(whole.path) as other:
        np.testing.assert_array_equal(twin.embed(texts), other.embed(texts))
    rows = verify_artifact(result.path).rows
    assert {row.check for row in rows} == {"batches against texts alone", "same bits in batches"}
    assert all(variant.verified for variant in open_artifact(result.path).variants)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact", "checkpoint", "whole"]
