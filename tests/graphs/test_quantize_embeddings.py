"""Tables in 8 bits: what is read of them, that no float32 table is made anywhere, what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from little_graphs import build, ops, random, run

from poolgraph.graphs import quantize_embeddings as module
from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.pipeline import CPU_INT8, PORTABLE_INT8
from poolgraph.graphs.quantize_embeddings import find_tables, quantize_embeddings, quantize_table, scale_rows

TEXT = """g (int64[batch, length] input_ids) => (float[batch, length, 64] y) {
    rows = Gather <axis = 0> (backbone__words__weight, input_ids)
    y = Add (rows, backbone__shift)
}"""
TABLE = random(3000, 64) * np.exp(random(3000, 1, seed=1))
TABLE[1] = 0
NAME = "backbone.words.weight"
IDS = np.array([[0, 1, 2], [2999, 7, 7]])


def words(text: str = TEXT, table: np.ndarray = TABLE) -> ir.Model:
    weights = {"backbone__words__weight": table, "backbone__shift": np.zeros(64, dtype=np.float32)}
    return build(text, **{name: array for name, array in weights.items() if name in text})


def quantized() -> ir.Model:
    model = words()
    assert quantize_embeddings([NAME])(model) == 1
    remove_dead_nodes(model)
    return model


def test_rows_are_those_of_numpy() -> None:
    model = words()
    quantize = quantize_embeddings(find_tables(model))
    assert quantize.__name__ == "quantize_embeddings"
    assert (quantize(model), quantize(model)) == (1, 0)
    remove_dead_nodes(model)
    assert ops(model) == ["Gather", "Cast", "Gather", "Mul", "Add"]
    (found,) = run(model, input_ids=IDS)
    scales = (np.abs(TABLE[IDS]).max(-1, keepdims=True) / 127).astype(np.float32)
    scales[scales == 0] = 1
    np.testing.assert_allclose(found, np.rint(TABLE[IDS] / scales) * scales, rtol=1e-6)
    assert np.abs(found - TABLE[IDS]).max() > 0
    assert (np.abs(found - TABLE[IDS]) <= scales / 2 * 1.001).all()
    np.testing.assert_array_equal(run(model, input_ids=IDS[1:])[0][0], found[1])


def test_packed_ids_that_become_a_row_are_words_too() -> None:
    text = TEXT.replace("batch, length] input_ids", "tokens] input_ids").replace(
        "int64[batch, length]", "int64[tokens]"
    )
    text = text.replace(
        "    rows =", "    begin = Constant <value_ints = [0]> ()\n    row = Unsqueeze (input_ids, begin)\n    rows ="
    )
    model = words(
        text.replace("weight, input_ids", "weight, row").replace("float[batch, length, 64]", "float[1, tokens, 64]")
    )
    assert find_tables(model) == (NAME,)
    assert quantize_embeddings([NAME])(model) == 1
    remove_dead_nodes(model)
    np.testing.assert_array_equal(run(model, input_ids=IDS[0])[0], run(quantized(), input_ids=IDS)[0][:1])


def test_what_is_stored_is_a_byte_a_value() -> None:
    stored = {name: value.const_value for name, value in quantized().graph.initializers.items()}
    assert {name: (it.dtype, it.shape.numpy()) for name, it in stored.items()} == {
        "backbone.shift": (ir.DataType.FLOAT, (64,)),
        f"{NAME}.int8": (ir.DataType.INT8, TABLE.shape),
        f"{NAME}.scales": (ir.DataType.FLOAT, (3000, 1)),
    }
    assert all(it.numpy().shape == it.shape.numpy() for it in stored.values())


@pytest.mark.parametrize("target", [CPU_INT8, PORTABLE_INT8], ids=lambda target: target.name)
def test_no_session_makes_a_float32_table(target, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    level = f"ORT_ENABLE_{target.session_options['graph_optimization_level'].upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(ir.to_proto(quantized()).SerializeToString(), options)
    tensors = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    large = {tensor.data_type for tensor in tensors if np.prod(tensor.dims) >= TABLE.size}
    assert large == {onnx.TensorProto.INT8}


def test_a_token_id_beyond_the_table_is_an_error() -> None:
    """As in float32; ONNX Runtime's GatherBlockQuantized answers with zeros."""
    with pytest.raises(Exception, match="out of data bounds"):
        run(quantized(), input_ids=np.array([[3000]]))


READ_TWICE = """g (int64[batch, length] input_ids) => (float[batch, length, 64] y, float[64, 64] z) {
    y = Gather (backbone__words__weight, input_ids)
    z = MatMul (backbone__other, backbone__words__weight)
}"""


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            build(TEXT.replace("backbone__", "head__"), head__words__weight=TABLE, head__shift=random(64)),
            id="of the head",
        ),
        pytest.param(words(TEXT.replace("input_ids", "token_type_ids")), id="read by another input"),
        pytest.param(
            words(TEXT.replace("axis = 0", "axis = 1"), TABLE.reshape(64, 3000)), id="read along another axis"
        ),
        pytest.param(words(table=TABLE[:2047]), id="too small"),
        pytest.param(
            build(READ_TWICE, backbone__words__weight=TABLE, backbone__other=random(64, 3000)),
            id="read by a product too",
        ),
    ],
)
def test_other_tables_stay(model: ir.Model) -> None:
    before = ops(model)
    assert find_tables(model) == ()
    assert quantize_embeddings([NAME, "head.words.weight"])(model) == 0
    assert ops(model) == before


def test_a_table_that_is_not_asked_for_stays() -> None:
    model = words()
    assert quantize_embeddings([])(model) == 0
    assert find_tables(model) == (NAME,)


def test_a_table_is_rounded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize_table(TABLE)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(quantize_table(TABLE), whole)
    assert (whole.dtype, np.abs(whole).max(1).tolist().count(127)) == (np.int8, 2999)
    assert np.isfinite(scale_rows(TABLE)).all()
