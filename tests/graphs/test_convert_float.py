"""The backbone in 16 bits, on little graphs: what is converted, and what stays in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cuda_operators import run_reference
from little_graphs import SIZE, build, ops, random, run

from poolgraph.errors import Float16RangeError
from poolgraph.graphs.check_cuda import check_cuda
from poolgraph.graphs.convert_float import convert_floats, row_values

ROWS = "float[batch_size,sequence_length,8]"

BACKBONE = """g (int64[batch_size,sequence_length] ids, int64[batch_size,sequence_length] mask)
  => (float[batch_size,8] y)
<float[batch_size,sequence_length,8] e, float[batch_size,sequence_length,8] h, float[batch_size,sequence_length,8] m,
 float[batch_size,sequence_length,1] shown, float[batch_size,sequence_length,8] pool>
{
  e = Gather(backbone__table, ids)
  wide = Unsqueeze(mask, last)  shown = Cast<to=1>(wide)
  m = Mul(e, shown)
  h = MatMul(m, backbone__w)
  pool = Mul(h, shown)
  y = ReduceSum<keepdims=0>(pool, middle)
}"""


def backbone_model() -> ir.Model:
    axes = {"last": np.array([-1]), "middle": np.array([1])}
    return build(BACKBONE, backbone__table=random(11, SIZE), backbone__w=random(SIZE, SIZE, seed=1), **axes)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.BFLOAT16)])
def test_the_backbone_is_in_16_bits_and_the_pooling_in_float32(precision: str, dtype: ir.DataType) -> None:
    model = backbone_model()
    feeds = {"ids": np.arange(10).reshape(2, 5), "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    (expected,) = run(model, **feeds)
    assert convert_floats(precision)(model) == 3
    types = {str(node.outputs[0].name): node.outputs[0].dtype for node in model.graph}
    assert [types[name] for name in ("e", "m", "h")] == [dtype] * 3
    assert [types[name] for name in ("shown", "pool", "y")] == [ir.DataType.FLOAT] * 3
    assert ops(model).count("Cast") == 3  # the mask's own, to 16 bits where it meets rows, and the rows to float32
    (found,) = run_reference(model, feeds).values()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.05)
    assert not np.array_equal(found, expected)
    assert convert_floats(precision)(model) == 0


def test_values_that_leave_the_range_are_computed_in_float32() -> None:
    model = backbone_model()
    assert [value.name for value in row_values(model)] == ["e", "m", "h"]
    convert_floats("fp16", ["m"])(model)
    types = {str(node.outputs[0].name): node.outputs[0].dtype for node in model.graph}
    assert (types["e"], types["m"], types["h"]) == (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT)


def test_what_reads_a_value_beyond_the_range_finds_it_whole() -> None:
    axes = {"last": np.array([-1]), "middle": np.array([1])}
    text = BACKBONE.replace("m = Mul(e, shown)", "big = Mul(shown, thousands)  m = Mul(e, big)").replace(
        "> {", ", float[batch_size,sequence_length,1] big> {"
    )
    weights = {"backbone__table": random(11, SIZE), "backbone__w": random(SIZE, SIZE, seed=1) / 1e5}
    model = build(
        text.replace(">\n{", ", float[batch_size,sequence_length,1] big>\n{"),
        **weights,
        **axes,
        thousands=np.array(100e3, np.float32),
    )
    feeds = {"ids": np.arange(10).reshape(2, 5), "mask": np.ones((2, 5), dtype=np.int64)}
    (expected,) = run(model, **feeds)
    plain = model.clone()
    convert_floats("fp16")(plain)
    assert not np.isfinite(next(iter(run_reference(plain, feeds).values()))).all()
    convert_floats("fp16", ["m", "big"])(model)
    (found,) = run_reference(model, feeds).values()
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01 * np.abs(expected).max())


def test_weights_beyond_the_range_are_refused_and_constants_cut() -> None:
    model = backbone_model()
    weight = model.graph.initializers["backbone.w"]
    weight.const_value = ir.tensor(np.where(np.eye(SIZE) > 0, 70000.0, 1.0).astype(np.float32), name=weight.name)
    convert_floats("fp16")(model)
    with pytest.raises(
        Float16RangeError, match=r"backbone\.w has 8 numbers beyond .* \(up to 70,000\); .*--precision bf16"
    ):
        model.graph.initializers["backbone.w.float16"].const_value.numpy()
    least = np.array([np.finfo(np.float32).min, -np.inf], np.float32)
    text = f"g (int64[batch_size,sequence_length] ids) => ({ROWS} y) <{ROWS} e, {ROWS} h>"
    text += " { e = Gather(backbone__table, ids)  h = Max(e, least)  y = MatMul(h, backbone__w) }"
    model = build(text, backbone__table=random(11, 2), backbone__w=random(2, SIZE), least=least)
    convert_floats("fp16")(model)
    assert model.graph.initializers["least.float16"].const_value.numpy().tolist() == [-65504.0, -np.inf]


def test_what_bfloat16_has_no_kernel_for_is_in_float32() -> None:
    text = """g (int64[batch_size,sequence_length] ids) => (float[batch_size,sequence_length,8] y)
    <float[batch_size,sequence_length,8] e, float[batch_size,sequence_length,8] p> {
      e = Gather(backbone__table, ids)  p = Pad(e, pads)  y = MatMul(p, backbone__w) }"""
    weights = {"backbone__table": random(11, SIZE), "backbone__w": random(SIZE, SIZE)}
    for precision, expected in (("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.FLOAT)):
        model = build(text, **weights, pads=np.array([0, 1, 0, 0, 0, 0]))
        convert_floats(precision)(model)
        assert next(node for node in model.graph if node.op_type == "Pad").outputs[0].dtype is expected
        assert check_cuda(model) == []


def test_what_feeds_a_scan_alone_is_in_float32() -> None:
    text = BACKBONE.replace(
        "h = MatMul(m, backbone__w)", "s = ReduceSum<keepdims=1>(m, last)  h = MatMul(s, backbone__w)"
    )
    model = build(
        text, backbone__table=random(11, SIZE), backbone__w=random(1, SIZE), last=np.array([-1]), middle=np.array([1])
    )
    convert_floats("fp16")(model)
    types = {str(node.outputs[0].name): node.outputs[0].dtype for node in model.graph}
    assert (types["e"], types["m"], types["h"]) == (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT16)


def test_a_row_that_is_an_answer_is_returned_as_float32() -> None:
    text = BACKBONE.replace("float[batch_size,8] y", "float[batch_size,sequence_length,8] h")
    text = text.replace("float[batch_size,sequence_length,8] h, float[batch_size,sequence_length,8] m", f"{ROWS} m")
    text = text[: text.index("  pool = ")] + "}"
    model = build(text, backbone__table=random(11, SIZE), backbone__w=random(SIZE, SIZE, seed=1), last=np.array([-1]))
    convert_floats("fp16")(model)
    (output,) = model.graph.outputs
    assert (output.name, output.dtype) == ("h", ir.DataType.FLOAT)


def test_a_shape_is_asked_of_rows_as_they_are() -> None:
    text = BACKBONE.replace("pool = Mul(h, shown)", "size = Shape(h)  r = Reshape(h, size)  pool = Mul(r, shown)")
    model = build(
        text.replace("pool>", "pool, float[batch_size,sequence_length,8] r>"),
        backbone__table=random(11, SIZE),
        backbone__w=random(SIZE, SIZE, seed=1),
        last=np.array([-1]),
        middle=np.array([1]),
    )
    convert_floats("fp16")(model)
    (shape,) = [node for node in model.graph if node.op_type == "Shape"]
    assert shape.inputs[0] is not None
    assert shape.inputs[0].name == "h"


def test_a_count_of_rows_without_a_type_is_no_row() -> None:
    text = BACKBONE.replace(
        "m = Mul(e, shown)", "count = Size(e)  share = Cast<to=1>(count)  n = Mul(e, shown)  m = Div(n, share)"
    )
    model = build(
        text,
        backbone__table=random(11, SIZE),
        backbone__w=random(SIZE, SIZE, seed=1),
        last=np.array([-1]),
        middle=np.array([1]),
    )
    convert_floats("fp16")(model)
    (count,) = [node.outputs[0] for node in model.graph if node.op_type == "Size"]
    assert count.dtype is None
    assert all(use.node.attributes["to"].as_int() == ir.DataType.FLOAT for use in count.uses())


def test_weights_that_were_computed_at_export_are_refused_beyond_the_range_too() -> None:
    text = BACKBONE.replace("h = MatMul(m, backbone__w)", "g = MatMul(m, flatten)  h = MatMul(g, backbone__w)")
    model = build(
        text.replace("pool>", "pool, float[batch_size,sequence_length,8] g>"),
        backbone__table=random(11, SIZE),
        backbone__w=random(SIZE, SIZE, seed=1),
        flatten=np.float32(1e6) * random(SIZE, SIZE, seed=2),
        last=np.array([-1]),
        middle=np.array([1]),
    )
    convert_floats("fp16")(model)
    with pytest.raises(Float16RangeError, match=r"the weight flatten.* export with --precision bf16"):
        model.graph.initializers["flatten.float16"].const_value.numpy()  # type: ignore[union-attr]
