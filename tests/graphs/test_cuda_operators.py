"""Whole graphs evaluated with CUDA's operators in numpy: in halves, with garbage as padding, with weights in a file."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cuda_operators import OPERATORS, UnknownOperatorError, run_reference
from little_graphs import random
from one_node import TYPES, one_node
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from poolgraph.graphs.fuse_bias_products import BIAS_MATMUL, CUDA_DOMAIN

LENGTHS = np.array([7, 3, 1], np.int32)
HALF_GRAPH = """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
g (int64[batch_size,length] ids, int32[batch_size] lengths) => (float[batch_size,16] y)
<TYPE[40,16] table, TYPE[16,16] weight, TYPE[16] gamma, TYPE[16] beta>
{
  rows = Gather(table, ids)
  q = MatMul(rows, weight)
  a = com.microsoft.MultiHeadAttention<num_heads=2>(q, q, q, , lengths)
  n = com.microsoft.SkipLayerNormalization(a, rows, gamma, beta)
  zero = Constant<value_int=0>()
  one = Constant<value_ints=[1]>()
  first = Gather<axis=1>(n, zero)
  wide = Cast<to=1>(first)
  y = LpNormalization<axis=1, p=2>(wide)
}"""


def half_model(kind) -> ir.Model:
    weights = {
        "table": random(40, 16, seed=1),
        "weight": random(16, 16, seed=2),
        "gamma": random(16, seed=3),
        "beta": random(16, seed=4),
    }
    tensors = [ir.tensor(array.astype(kind), name=name) for name, array in weights.items()]
    model = ir.from_onnx_text(HALF_GRAPH.replace("TYPE", TYPES[np.dtype(kind)]), initializers=tensors)
    for tensor in tensors:
        value = model.graph.initializers[tensor.name]
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
    return model


FEEDS = {"ids": np.random.default_rng(0).integers(0, 40, (3, 7)), "lengths": LENGTHS}


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_graph_in_halves_is_near_the_one_in_float32(kind) -> None:
    wide, half = run_reference(half_model(np.float32), FEEDS)["y"], run_reference(half_model(kind), FEEDS)["y"]
    assert wide.dtype == half.dtype == np.float32
    assert 1e-6 < np.abs(wide - half).max() < 0.05
    assert ((wide * half).sum(1) > 0.999).all()


def test_padding_reaches_no_answer_that_ignores_it_and_one_that_does_not() -> None:
    model = half_model(np.float32)
    clean = run_reference(model, FEEDS, poison=False)["y"]
    np.testing.assert_array_equal(run_reference(model, FEEDS)["y"], clean)
    leaking = ir.from_onnx_text(HALF_GRAPH.replace("TYPE", "float").replace("value_int=0", "value_int=6"))
    for name, value in model.graph.initializers.items():
        leaking.graph.initializers.pop(name, None)
        leaking.graph.register_initializer(
            ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
        )
    assert np.abs(run_reference(leaking, FEEDS)["y"] - run_reference(leaking, FEEDS, poison=False)["y"]).max() > 0.1


def test_weights_beside_the_file(tmp_path) -> None:
    model = half_model(np.float16)
    expected = run_reference(model, FEEDS)["y"]
    ir.save(model, tmp_path / "model.onnx", external_data="weights.data", size_threshold_bytes=0)
    assert (tmp_path / "weights.data").stat().st_size
    np.testing.assert_array_equal(run_reference(tmp_path / "model.onnx", FEEDS)["y"], expected)
    np.testing.assert_array_equal(run_reference(ir.load(tmp_path / "model.onnx"), FEEDS)["y"], expected)
    np.testing.assert_array_equal(run_reference(onnx.load(tmp_path / "model.onnx"), FEEDS)["y"], expected)


def test_an_operator_without_an_implementation_is_named() -> None:
    model, feeds = one_node("com.microsoft.GatedRMSNorm", [random(2, 3)])
    with pytest.raises(UnknownOperatorError, match="microsoft::GatedRMSNorm"):
        run_reference(model, feeds)
    model, feeds = one_node("com.microsoft.Gelu", [random(2, 3)])
    with pytest.raises(ValueError, match="feeds"):
        run_reference(model, {**feeds, "other": random(1)})


def test_every_operator_is_one_of_onnx_runtime_or_our_own() -> None:
    known = {(it.domain, it.name) for it in get_all_operator_schema()}
    assert {(it.op_domain, it.__name__) for it in OPERATORS} - known == {(CUDA_DOMAIN, BIAS_MATMUL)}


def test_tiny_graphs_take_no_time() -> None:
    model = half_model(np.float16)
    start = time.perf_counter()
    assert np.isfinite(run_reference(model, FEEDS)["y"]).all()
    assert time.perf_counter() - start < 2
