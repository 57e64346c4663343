"""Logarithms become sums of one number, whose bits do not depend on the batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from little_graphs import build, ops

from poolgraph.graphs.lower_logarithms import lower_logarithms

GRAPH = "g (float[n, 403] x) => (float[n, 403] y) { y = Log(x) }"
ROWS = (1 + 20 * np.random.default_rng(0).random((40, 403))).astype(np.float32)


def run(model: ir.Model, rows: np.ndarray, threads: int = 1) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"x": rows})
    return result


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_batch(threads: int) -> None:
    model = build(GRAPH)
    assert lower_logarithms(model) == 1
    assert ops(model) == ["Unsqueeze", "ReduceLogSum"]
    found = run(model, ROWS, threads)
    assert np.array_equal(np.concatenate([run(model, ROWS[i : i + 1], threads) for i in range(len(ROWS))]), found)
    assert np.allclose(found, np.log(ROWS.astype(np.float64)), rtol=2e-7, atol=0)
    assert [str(value.name) for value in model.graph.outputs] == ["y"]
    assert lower_logarithms(model) == 0


def test_onnx_runtime_has_no_such_bits() -> None:
    model = build(GRAPH)
    alone = np.concatenate([run(model, ROWS[i : i + 1]) for i in range(len(ROWS))])
    assert not np.array_equal(run(model, ROWS), alone), "ONNX Runtime's Log does not need the pass any more"


def test_a_value_of_unknown_axes_is_left() -> None:
    model = build(GRAPH)
    model.graph.outputs[0].shape = None
    assert lower_logarithms(model) == 0
