"""Which operators work row by row: what is claimed is checked by running the operator on a row."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from little_graphs import build, random, run

from poolgraph.graphs.row_wise import ELEMENTWISE, row_axis, row_inputs

INPUTS = (
    "float[batch_size,sequence_length,8] x, float[batch_size,2,sequence_length,4] heads, float[sequence_length,8] t"
)
CONSTANTS = {
    "w": random(8, 6),
    "deep": random(3, 8, 6),
    "gamma": random(8, seed=1),
    "scalar": np.array(2, dtype=np.float32),
    "last_axis": np.array([-1]),
    "row_axis": np.array([1]),
    "front": np.array([0]),
    "split": np.array([3, 5]),
    "two": np.array([2]),
    "six": np.array([6]),
    "one_step": np.array([1]),
    "back": np.array([-1]),
    "far": np.array([np.iinfo(np.int64).min]),
    "to_heads": np.array([0, 0, 2, 4]),
    "open_rows": np.array([0, -1, 8]),
    "to_joined": np.array([-1, 8]),
    "shape": np.array([3, 5, 8]),
}
B, S = "batch_size", "sequence_length"

WORKS = {
    "Add of a row for all": ("Add(x, gamma)", [B, S, 8], (0,)),
    "Add of a table": ("Add(t, x)", [B, S, 8], (0, 1)),
    "Mul of a number": ("Mul(scalar, x)", [B, S, 8], (1,)),
    "Where": ("Where(yes, x, x)", [B, S, 8], (1, 2)),
    "MatMul": ("MatMul(x, w)", [B, S, 6], (0,)),
    "MatMul of several matrices": ("MatMul(t, deep)", [3, S, 6], (0,)),
    "LayerNormalization": ("LayerNormalization<axis=-1>(x, gamma)", [B, S, 8], (0,)),
    "LayerNormalization from the front": ("LayerNormalization<axis=2>(x, gamma)", [B, S, 8], (0,)),
    "Softmax": ("Softmax<axis=-1>(x)", [B, S, 8], (0,)),
    "LogSoftmax": ("LogSoftmax(x)", [B, S, 8], (0,)),
    "ReduceMean": ("ReduceMean<keepdims=1>(x, last_axis)", [B, S, 1], (0,)),
    "ReduceSum that drops an axis": ("ReduceSum<keepdims=0>(x, last_axis)", [B, S], (0,)),
    "Concat": ("Concat<axis=-1>(x, x)", [B, S, 16], (0, 1)),
    "Slice": ("Slice(x, front, two, last_axis)", [B, S, 2], (0,)),
    "Transpose": ("Transpose<perm=[0, 2, 1, 3]>(heads)", [B, S, 2, 4], (0,)),
    "Reshape": ("Reshape(x, to_heads)", [B, S, 2, 4], (0,)),
    "Reshape with open rows": ("Reshape(x, open_rows)", [B, S, 8], (0,)),
    "Unsqueeze": ("Unsqueeze(x, row_axis)", [B, 1, S, 8], (0,)),
    "Squeeze": ("Squeeze(one_head, row_axis)", [B, S, 4], (0,)),
}
MIXES = {
    "Softmax along the rows": ("Softmax<axis=1>(x)", [B, S, 8]),
    "Softmax of older models": ("Softmax<axis=-2>(x)", [B, S, 8]),
    "norm of a text": ("LayerNormalization<axis=1>(x, gamma)", [B, S, 8]),
    "ReduceMean of a text": ("ReduceMean<keepdims=1>(x, row_axis)", [B, 1, 8]),
    "Concat along the rows": ("Concat<axis=1>(x, x)", [B, S, 8]),
    "Concat with other rows": ("Concat<axis=2>(x, flat)", [B, S, 16]),
    "rows in reverse": ("Slice(x, back, far, row_axis, back)", [B, S, 8]),
    "Slice of computed axes": ("Slice(x, front, two, computed)", [B, S, 8]),
    "sums along the rows": ("CumSum(x, row_axis)", [B, S, 8]),
    "product along the rows": ("MatMul(other, x)", [B, S, 8]),
    "product of all pairs": ("MatMul(x, turned)", [B, S, S]),
    "product of rows with rows": ("MatMul(heads, heads)", [B, 2, S, 4]),
    "Add across": ("Add(x, across)", [B, S, S]),
    "Add of other rows": ("Add(x, other)", [B, S, 8]),
    "Reshape of flat rows": ("Reshape(flat, open_rows)", [B, S, 8]),
    "Reshape to a size": ("Reshape(x, shape)", [B, S, 8]),
    "Reshape to a computed size": ("Reshape(x, computed)", [B, S, 8]),
    "Squeeze of whatever is 1": ("Squeeze(one_head)", [B, S, 4]),
    "Gather": ("Gather<axis=1>(x, computed)", [B, S, 8]),
    "nothing known of an input": ("Mul(x, unknown)", [B, S, 8]),
}
MORE_INPUTS = {
    "yes": "bool[batch_size,1,1]",
    "one_head": "float[batch_size,1,sequence_length,4]",
    "flat": "float[rows,8]",
    "computed": "int64[3]",
    "other": "float[batch_size,others,8]",
    "turned": "float[batch_size,8,sequence_length]",
    "across": "float[batch_size,1,sequence_length]",
}


def one_node(call: str, axes: list[int | str], rows: str = S) -> ir.Model:
    words = re.findall(r"\w+", call)
    given = INPUTS + "".join(f", {kind} {name}" for name, kind in MORE_INPUTS.items() if name in words)
    hidden = "unknown = Mystery(x)  " if "unknown" in words else ""
    shape = ",".join(map(str, axes))
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    text = f"g ({given}) => (float[{shape}] y) {{ {hidden} y = {call} }}"
    return build(text.replace(S, rows), **used)


def last_node(model: ir.Model) -> ir.Node:
    return list(model.graph)[-1]


@pytest.mark.parametrize(("call", "axes", "inputs"), WORKS.values(), ids=WORKS)
def test_a_row_of_the_result_is_made_of_that_row(call: str, axes: list[int | str], inputs: tuple[int, ...]) -> None:
    model = one_node(call, axes)
    node = last_node(model)
    assert row_inputs(node) == inputs
    feeds = {"x": random(3, 5, 8, seed=2), "heads": random(3, 2, 5, 4, seed=3), "t": random(5, 8, seed=4)}
    feeds |= {"one_head": random(3, 1, 5, 4, seed=5), "yes": np.array([True, False, True]).reshape(3, 1, 1)}
    feeds = {value.name: feeds[value.name] for value in model.graph.inputs}
    places = {node.inputs[index].name: row_axis(node.inputs[index]) for index in inputs}
    place = row_axis(node.outputs[0])
    (whole,) = run(model, **feeds)
    for row in (0, 4):
        one = {n: rows.take([row], axis=places[n]) if n in places else rows for n, rows in feeds.items()}
        for value in model.graph.inputs:
            value.shape = ir.Shape([None] * len(value.shape))
        model.graph.outputs[0].shape = None
        np.testing.assert_allclose(run(model, **one)[0], whole.take([row], axis=place), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("call", "axes", "inputs"), WORKS.values(), ids=WORKS)
def test_rows_of_packed_texts_are_told_alike(call: str, axes: list[int | str], inputs: tuple[int, ...]) -> None:
    assert row_inputs(last_node(one_node(call, axes, "num_tokens"))) == inputs


@pytest.mark.parametrize("rows", [S, "num_tokens"])
@pytest.mark.parametrize(("call", "axes"), MIXES.values(), ids=MIXES)
def test_what_mixes_rows_or_cannot_be_told(call: str, axes: list[int | str], rows: str) -> None:
    assert row_inputs(last_node(one_node(call, axes, rows))) is None


def test_results_side_by_side() -> None:
    text = f"g ({INPUTS}) => (float[batch_size,sequence_length,3] y, float[batch_size,sequence_length,5] z)"
    model = build(f"{text} {{ y, z = Split<axis=-1>(x, split) }}", split=CONSTANTS["split"])
    assert row_inputs(last_node(model)) == (0,)
    model = build(f"{text} {{ y, z = Split<axis=1>(x, split) }}", split=CONSTANTS["split"])
    assert row_inputs(last_node(model)) is None


def test_axes_that_the_exporter_left_out_follow_from_the_inputs() -> None:
    text = f"g ({INPUTS}) => (float[batch_size,sequence_length,2] y)"
    nodes = "a = MatMul(x, w)  b = Sigmoid(a)  c = Mul(b, scalar)  y = Slice(c, front, two, last_axis)"
    names = ("w", "scalar", "front", "two", "last_axis")
    model = build(f"{text} {{ {nodes} }}", **{name: CONSTANTS[name] for name in names})
    assert [row_inputs(node) for node in model.graph] == [(0,)] * 4


def test_elementwise_operators_are_of_the_standard() -> None:
    import onnx

    assert all(onnx.defs.has(name) for name in ELEMENTWISE)
