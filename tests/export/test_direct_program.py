"""Programs that torch's exporter takes as they are; the long way where an operator is unknown."""

import operator
from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes.type_promotion import _TypePromotionInterpreter

from poolgraph.export import direct_program
from poolgraph.export.direct_program import (
    _REGISTRIES,
    CASTS,
    TRANSLATED,
    shared_registry,
    spare_second_trace,
    translate,
)
from poolgraph.export.trace import OPSET_VERSION

BUILT_IN = {operator.getitem, operator.add, operator.sub, operator.mul, operator.neg}


class Model(nn.Module):
    """A product between casts, one of which changes nothing and is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        torch.diff(ids)  # computed for nobody, as by transformers where it looks for packed sequences
        rows = self.linear(ids.float().to(torch.float32)[..., None].expand(-1, -1, 4))
        return rows.relu().float(), rows.mean(dim=1)


class Mixed(nn.Module):
    """Operators of two types, whose arguments the exporter has to cast."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids * ids.float(), torch.where(ids > 3, ids / 2, ids)


class Differences(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.diff(ids).float()


def trace(module: nn.Module) -> torch.export.ExportedProgram:
    length = torch.export.Dim("length", min=3, max=64)
    with torch.no_grad():
        return torch.export.export(module.eval(), (torch.ones(2, 7, dtype=torch.int64),), dynamic_shapes=[{1: length}])


def build_graph(program: torch.export.ExportedProgram) -> ir.Model:
    exported = translate(program, dynamo=True, optimize=False, opset_version=OPSET_VERSION, verbose=False)
    assert exported is not None
    return exported.model


def answers(model: ir.Model, ids: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: ids})


def test_every_operator_has_a_translation_and_writes_nowhere():
    registry = ONNXRegistry.from_torchlib(OPSET_VERSION)
    assert [op for op in TRANSLATED if not registry.is_registered(op)] == []
    assert registry.is_registered(torch.ops.aten._to_copy.default)
    assert [op for op in (TRANSLATED | CASTS) - BUILT_IN if op._schema.is_mutable] == []


@pytest.mark.filterwarnings("ignore")
def test_answers_are_those_of_the_long_way(monkeypatch):
    module = Model()
    long, short = trace(module), trace(module)
    calls = []
    run = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *args: calls.append(args[0]) or run(*args)
    )
    graphs = [build_graph(short)]
    assert calls == []
    monkeypatch.setattr(direct_program, "TRANSLATED", frozenset())
    graphs.append(build_graph(long))
    assert [call is long for call in calls] == [True]
    kinds = [Counter(node.op_type for node in graph.graph) for graph in graphs]
    assert kinds[0] == kinds[1]
    assert kinds[0]["Cast"] == 1
    ids = np.arange(22).reshape(2, 11)
    expected = [value.detach().numpy() for value in module(torch.from_numpy(ids))]
    for graph in graphs:
        for one, other in zip(answers(graph, ids), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("listed", [False, True])
def test_an_operator_without_a_translation_goes_the_long_way(listed, monkeypatch):
    program = trace(Differences())
    if listed:  # as with a torch that has dropped a translation
        monkeypatch.setattr(direct_program, "TRANSLATED", TRANSLATED | {torch.ops.aten.diff.default})
    assert spare_second_trace(trace(Differences())) == listed
    np.testing.assert_array_equal(answers(build_graph(program), np.array([[1, 4, 9], [2, 2, 0]]))[0], [[3, 5], [0, -2]])


@pytest.mark.filterwarnings("ignore")
def test_arguments_are_cast_as_by_torch_and_only_what_changes_is_computed(monkeypatch):
    computed = []
    run = torch.fx.Interpreter.call_function

    def call(self, target, *arguments):
        if isinstance(self, _TypePromotionInterpreter):
            computed.append(target)
        return run(self, target, *arguments)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", call)
    options = {"dynamo": True, "optimize": False, "opset_version": OPSET_VERSION, "verbose": False}
    graphs = [torch.onnx.export(trace(Mixed()), **options).model]
    assert torch.ops.aten.gt.Scalar in computed
    computed.clear()
    graphs.append(build_graph(trace(Mixed())))
    assert torch.ops.aten.gt.Scalar not in computed
    assert torch.ops.prims.convert_element_type.default in computed
    kinds = [Counter(node.op_type for node in graph.graph) for graph in graphs]
    assert kinds[0] == kinds[1]
    ids = np.array([[1, 4, 9], [2, 7, 0]])
    for expected, found in zip(*(answers(graph, ids) for graph in graphs), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, np.where(ids > 3, ids / 2, ids))


def test_the_registry_is_built_once_and_given_back():
    original = ONNXRegistry.__dict__["from_torchlib"]
    with shared_registry():
        first = ONNXRegistry().from_torchlib(opset_version=OPSET_VERSION)
        first.register_op(torch.ops.aten.sym_numel.default, str)
        first.register_op(torch.ops.aten.abs.default, str)
    built = dict(_REGISTRIES)
    with shared_registry():
        second = ONNXRegistry().from_torchlib(opset_version=OPSET_VERSION)
        assert ONNXRegistry().from_torchlib(opset_version=OPSET_VERSION + 1).opset_version == OPSET_VERSION + 1
    assert _REGISTRIES[OPSET_VERSION] is built[OPSET_VERSION]
    assert set(first.functions) - set(second.functions) == {"aten::sym_numel"}  # what one export adds, no other has
    assert len(first.functions["aten::abs"]) == len(second.functions["aten::abs"]) + 1
    assert ONNXRegistry.__dict__["from_torchlib"] is original
    assert ONNXRegistry.from_torchlib(OPSET_VERSION).functions.keys() == second.functions.keys()
