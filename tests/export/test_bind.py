"""Binding of parameters to a checkpoint's tensors: every spelling found, everything missing named, shapes checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from little_graphs import build
from safetensors.torch import save_file

from poolgraph.errors import ExportError
from poolgraph.export.bind import bind_weights
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head import StoredTensor, describe_modules
from poolgraph.export.sentence_transformers import HeadModule

GRAPH = """g (float[n,2] x) => (float[n,2] y)
{ a = MatMul(x, backbone__dense__weight)  b = Mul(a, backbone__layer__LayerNorm__weight)
  c = Add(b, backbone__LayerNorm__bias)   d = Mul(c, constant)
  y = Add(d, head__chain__1__linear__bias) }"""


def model() -> ir.Model:
    shapes = {
        "backbone__dense__weight": (2, 2),
        "backbone__layer__LayerNorm__weight": (2,),
        "backbone__LayerNorm__bias": (2,),
        "constant": (2,),
        "head__chain__1__linear__bias": (2,),
    }
    return build(GRAPH, **{name: np.full(shape, 9, np.float32) for name, shape in shapes.items()})


PLAIN = {
    "dense.weight": torch.arange(4.0).reshape(2, 2),
    "layer.LayerNorm.weight": torch.tensor([1.0, 2.0]),
    "LayerNorm.bias": torch.tensor([3.0, 4.0]),
}


def folder(path: Path, tensors: dict[str, torch.Tensor]) -> WeightFolder:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return WeightFolder(path)


def bind(path: Path, tensors: dict[str, torch.Tensor], head: dict[str, torch.Tensor] | None = None) -> ir.Model:
    graph = model()
    head_folder = folder(path / "head", {"linear.bias": torch.tensor([5.0, 6.0])} if head is None else head).folder
    stored = StoredTensor(folder=head_folder, name="linear.bias")
    heads = {"head.chain.1.linear.bias": stored} if head is None or "linear.bias" in head else {}
    assert bind_weights(graph, folder(path / "backbone", tensors), "bert", heads) == 4
    return graph


def values(graph: ir.Model) -> dict[str, list]:
    return {name: value.const_value.numpy().tolist() for name, value in graph.graph.initializers.items()}


EXPECTED = {
    "backbone.dense.weight": [[0, 1], [2, 3]],
    "backbone.layer.LayerNorm.weight": [1, 2],
    "backbone.LayerNorm.bias": [3, 4],
    "constant": [9, 9],
    "head.chain.1.linear.bias": [5, 6],
}


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old", [False, True])
def test_every_spelling(tmp_path: Path, prefix: str, old: bool) -> None:
    def spell(name: str) -> str:
        for new, ancient in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            name = name.replace(new, ancient) if old else name
        return prefix + name

    assert values(bind(tmp_path, {spell(name): tensor for name, tensor in PLAIN.items()})) == EXPECTED


@pytest.mark.parametrize(
    ("weight", "bias"), [("linear.weight", "linear.bias"), ("weight", "bias"), ("dense.weight",) * 2]
)
def test_every_spelling_of_a_head(tmp_path: Path, weight: str, bias: str) -> None:
    bias = bias.replace("weight", "bias")
    folder(tmp_path / "2_Dense", {weight: torch.ones(3, 2), bias: torch.ones(3)})
    module = HeadModule(kind="Dense", path="2_Dense", config={"in_features": 2, "out_features": 3})
    (step,) = describe_modules([module], tmp_path)
    assert {name: stored.name for name, stored in step.tensors.items()} == {
        "linear.weight": weight,
        "linear.bias": bias,
    }


def test_head_module_without_a_tensor(tmp_path: Path) -> None:
    folder(tmp_path / "2_Dense", {"linear.weight": torch.ones(3, 2)})
    module = HeadModule(kind="Dense", path="2_Dense", config={"in_features": 2, "out_features": 3})
    with pytest.raises(
        ExportError, match=r"Dense at '2_Dense' lacks the tensor linear\.bias; it has \['linear\.weight'\]"
    ):
        describe_modules([module], tmp_path)


def test_rows_and_their_difference(tmp_path: Path) -> None:
    weights = folder(tmp_path / "lm", {"lm_head.weight": torch.arange(8.0).reshape(4, 2)})
    stored = StoredTensor(folder=weights.folder, name="lm_head.weight", rows=(3, 1))
    assert stored.load(weights).tolist() == [[6, 7], [2, 3]]
    assert replace(stored, difference=True).load(weights).tolist() == [[-4, -4]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    graph = bind(tmp_path, {name: tensor.to(dtype) for name, tensor in PLAIN.items()})
    assert values(graph) == EXPECTED
    assert {value.dtype for value in graph.graph.initializers.values()} == {ir.DataType.FLOAT}


def test_all_missing_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lacks 3 tensors of the model") as caught:
        bind(tmp_path, {"dense.weight": PLAIN["dense.weight"]}, {"other": torch.ones(1)})
    for name in ("backbone.layer.LayerNorm.weight", "backbone.LayerNorm.bias", "head.chain.1.linear.bias"):
        assert name in str(caught.value)
    assert "dense.weight" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 2, 2)])
def test_wrong_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match=r"dense\.weight has shape .* in the checkpoint, the model needs \(2, 2\)"):
        values(bind(tmp_path, {**PLAIN, "dense.weight": torch.ones(shape)}))


def test_nothing_is_read_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    original = WeightFolder.load
    monkeypatch.setattr(WeightFolder, "load", lambda self, name: [reads.append(name), original(self, name)][1])
    graph = bind(tmp_path, PLAIN)
    assert reads == []
    graph.graph.initializers["backbone.dense.weight"].const_value.numpy()
    assert reads == ["dense.weight"]
