"""Passes towards the native operators: what they take in, what they leave alone, the same numbers before and after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from little_graphs import build, ops, random
from native_graphs import needs_native
from native_passes import apply, each_kind, native, run

from poolgraph.graphs.fuse_activations import fuse_activations, fuse_gates
from poolgraph.graphs.fuse_feed_forward import fuse_feed_forward
from poolgraph.graphs.fuse_residual_norm import fuse_norms, fuse_residuals
from poolgraph.graphs.fuse_rms_norm import fuse_rms_norm
from poolgraph.graphs.lower_attention_native import (
    fits_native_packed,
    lower_attention_to_native,
    lower_attention_to_native_float,
)
from poolgraph.graphs.lower_products import lower_products_to_bfloat, lower_products_to_native
from poolgraph.graphs.lower_text_sums import lower_text_sums
from poolgraph.graphs.native import (
    FUSED,
    QUANTIZED,
    Activation,
    Gate,
    Norm,
    ProductOperators,
    native_nodes,
    number,
)
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.products import find_products
from poolgraph.graphs.quantize_products import Recipe, quantize_products

ROWS = random(2, 7, 16, seed=3)
W = {"backbone__up": random(16, 24), "backbone__down": random(24, 16, seed=1), "backbone__b": random(24, seed=2)}
NORM = {"weight": random(16, seed=4), "shift": random(16, seed=5)}
AXES = "float[batch, length, 16] x"


FEED_FORWARD = f"""g ({AXES}) => (float[batch, length, 16] y)
<float[batch, length, 24] h, float[batch, length, 24] a, float[batch, length, 16] d, float[batch, length, 16] s> {{
    p = MatMul (x, backbone__up)
    h = Add (p, backbone__b)
    a = ACTIVATION
    d = MatMul (a, backbone__down)
    s = Add (x, d)
    y = LayerNormalization <axis = -1, epsilon = 1.0e-3> (s, weight, shift)
}}"""


def test_a_product_becomes_one_operator_with_its_bias_and_keeps_its_weights() -> None:
    text = FEED_FORWARD.replace("a = ACTIVATION", "a = Tanh (h)")
    model = build(text, **W, **NORM)
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert apply(model, (lower_products_to_native,)) == [2]
    assert ops(model) == ["FusedMatMul", "Tanh", "FusedMatMul", "Add", "LayerNormalization"]
    up, down = native_nodes(model, "FusedMatMul")
    assert [value.name for value in up.inputs if value is not None] == ["x", "backbone.up", "backbone.b"]
    assert [value.name for value in down.inputs if value is not None][1:] == ["backbone.down"]
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == weights


def test_products_are_rounded_to_bfloat16_but_for_those_that_choose_experts() -> None:
    text = f"""g ({AXES}) => (float[batch, length, 24] h, float[batch, length, 2] v, int64[batch, length, 2] i) {{
        h = MatMul (x, backbone__up)
        scores = MatMul (x, backbone__router)
        v, i = TopK (scores, k)
    }}"""
    router, k = random(16, 4, seed=1), np.array([2], dtype=np.int64)
    model = build(text, backbone__up=W["backbone__up"], backbone__router=router, k=k)
    assert apply(model, (lower_products_to_bfloat, lower_products_to_native)) == [1, 1]
    assert sorted(ops(model)) == ["BFloatMatMul", "FusedMatMul", "TopK"]


def test_products_of_the_head_and_of_pooled_rows_stay() -> None:
    pooled = "g (float[batch, 16] x) => (float[batch, 24] y) { y = MatMul (x, backbone__up) }"
    head = f"g ({AXES}) => (float[batch, length, 24] y) {{ y = MatMul (x, head__up) }}"
    assert lower_products_to_native(build(pooled, backbone__up=W["backbone__up"])) == 0
    assert lower_products_to_native(build(head, head__up=W["backbone__up"])) == 0


def test_products_of_two_kinds_do_not_become_one_layer() -> None:
    model = build(FEED_FORWARD.replace("a = ACTIVATION", "a = Relu (h)"), **W, **NORM)
    up, _ = find_products(model)
    quantize_products({up.name: Recipe(scheme="range")}, native=True)(model)
    passes = (lower_products_to_native, fuse_activations, fuse_feed_forward, fuse_residuals, fuse_norms)
    assert apply(model, passes) == [1, 1, 0, 1, 1]
    assert ops(model) == ["QuantizedMatMul", "FusedMatMul"]


@needs_native
@each_kind
@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("Gelu (h)", Activation.GELU),
        ('Gelu <approximate = "tanh"> (h)', Activation.GELU_TANH),
        ("Relu (h)", Activation.RELU),
        ("Mul (h, g)\n g = Sigmoid (h)", Activation.SILU),
    ],
)
def test_a_feed_forward_layer_becomes_one_operator(
    activation: str, expected: Activation, kind: ProductOperators
) -> None:
    lines = activation.split("\n")
    text = FEED_FORWARD.replace("a = ACTIVATION", "\n".join([*lines[1:], f"a = {lines[0]}"]))
    model = native(kind, text, **W, **NORM)
    before = run(model, x=ROWS)[0]
    counts = apply(model, (fuse_activations, fuse_gates, fuse_feed_forward, fuse_residuals, fuse_norms))
    assert counts == [1, 0, 1, 1, 1]
    (node,) = native_nodes(model, kind.feed_forward)
    assert ops(model) == [kind.feed_forward]
    assert (number(node, "up_activation"), number(node, "norm")) == (expected, Norm.LAYER)
    np.testing.assert_allclose(run(model, x=ROWS)[0], before, atol=2e-5)


@needs_native
@pytest.mark.parametrize(("first", "second", "gate"), [("a", "b", Gate.FIRST), ("b", "a", Gate.SECOND)])
@pytest.mark.parametrize(("kind", "merged"), [(QUANTIZED, True), (QUANTIZED, False), (FUSED, True)])
def test_gates(first: str, second: str, gate: Gate, kind: ProductOperators, merged: bool) -> None:
    products = """
        p = MatMul (x, backbone__up)
        a, b = Split <axis = -1, num_outputs = 2> (p)""" if merged else """
        a = MatMul (x, backbone__left)
        b = MatMul (x, backbone__right)"""  # fmt: skip
    text = f"""g ({AXES}) => (float[batch, length, 12] y)
    <float[batch, length, 24] p, float[batch, length, 12] a, float[batch, length, 12] b> {{{products}
        e = Gelu ({first})
        y = Mul (e, {second})
    }}"""
    left, right = W["backbone__up"][:, :12], W["backbone__up"][:, 12:]
    weights = {"backbone__up": W["backbone__up"]} if merged else {"backbone__left": left, "backbone__right": right}
    model = native(kind, text, **weights)
    before = run(model, x=ROWS)[0]
    assert apply(model, (fuse_activations, fuse_gates)) == [0, 1]
    (node,) = native_nodes(model, kind.matmul)
    assert (ops(model), number(node, "gate")) == ([kind.matmul], gate)
    np.testing.assert_allclose(run(model, x=ROWS)[0], before, rtol=1e-5, atol=1e-4)


@needs_native
@each_kind
def test_a_sum_that_others_read_becomes_the_second_output(kind: ProductOperators) -> None:
    text = FEED_FORWARD.replace("a = ACTIVATION", "a = Relu (h)").replace(
        "float[batch, length, 16] y)", "float[batch, length, 16] y, float[batch, length, 16] z)"
    )
    model = native(kind, text.replace("y = Layer", "z = Neg (s)\n y = Layer"), **W, **NORM)
    before = run(model, x=ROWS)
    apply(model, (fuse_activations, fuse_feed_forward, fuse_residuals, fuse_norms))
    assert ops(model) == [kind.feed_forward, "Neg"]
    for found, expected in zip(run(model, x=ROWS), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (("a = ACTIVATION", "a = Tanh (h)"), [0, 0, 1, 1]),  # another activation
        (("s = Add (x, d)", "row = ReduceMean (x)\n s = Add (d, row)"), [1, 1, 0, 0]),  # a sum that broadcasts
        (("axis = -1", "axis = 1"), [1, 1, 1, 0]),  # a norm over two axes
    ],
)
def test_what_stays(change: tuple[str, str], counts: list[int]) -> None:
    text = FEED_FORWARD.replace(*change).replace("a = ACTIVATION", "a = Relu (h)")
    model = native(QUANTIZED, text, **W, **NORM)
    assert apply(model, (fuse_activations, fuse_feed_forward, fuse_residuals, fuse_norms)) == counts


@pytest.mark.parametrize(("index", "counts"), [(0, [0, 0, 1, 1]), (1, [1, 0, 1, 1]), (2, [1, 1, 0, 0])])
def test_rows_that_are_asked_for_stay(index: int, counts: list[int]) -> None:
    model = native(QUANTIZED, FEED_FORWARD.replace("a = ACTIVATION", "a = Relu (h)"), **W, **NORM)
    assert ops(model)[:3] == ["QuantizedMatMul", "Relu", "QuantizedMatMul"]
    model.graph.outputs.append(list(model.graph)[index].outputs[0])
    names = [value.name for value in model.graph.outputs]
    assert apply(model, (fuse_activations, fuse_feed_forward, fuse_residuals, fuse_norms)) == counts
    assert [value.name for value in model.graph.outputs] == names
    assert {value.name for node in model.graph for value in node.outputs} >= set(names)


RMS = f"""g ({AXES}) => (float[batch, length, 16] y) <float[batch, length, 16] t, float[batch, length, 1] r> {{
    square = Pow (x, two)
    mean = ReduceMean (square, axes)
    shifted = Add (mean, epsilon)
    root = Sqrt (shifted)
    r = Reciprocal (root)
    t = Mul (x, r)
    y = Mul (weight, t)
}}"""
RMS_WEIGHTS = {
    "two": np.array(2.0, dtype=np.float32),
    "axes": np.array([-1], dtype=np.int64),
    "epsilon": np.array(1e-3, dtype=np.float32),
    "weight": NORM["weight"],
}


def test_root_mean_square_norms_become_one_operator() -> None:
    model = build(RMS, **RMS_WEIGHTS)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    before = session.run(None, {"x": ROWS})[0]
    assert apply(model, (fuse_rms_norm,)) == [1]
    assert "SimplifiedLayerNormalization" in ops(model)
    found = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": ROWS})[0]
    np.testing.assert_allclose(found, before, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"two": np.array(3.0, dtype=np.float32)},
        {"axes": np.array([1], dtype=np.int64)},
        {"weight": np.ones((1,), dtype=np.float32)},
        {"epsilon": np.full(16, 1e-3, dtype=np.float32)},
    ],
)
def test_other_norms_stay(change: dict[str, np.ndarray]) -> None:
    assert fuse_rms_norm(build(RMS, **{**RMS_WEIGHTS, **change})) == 0


def test_a_mean_without_axes_or_without_its_axis_stays() -> None:
    weights = {name: array for name, array in RMS_WEIGHTS.items() if name != "axes"}
    assert fuse_rms_norm(build(RMS.replace("(square, axes)", "(square)"), **weights)) == 0
    assert fuse_rms_norm(build(RMS.replace("(square", "<keepdims = 0> (square"), **RMS_WEIGHTS)) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"weight": np.ones((1,), dtype=np.float32)},  # broadcast
        {"shift": np.ones((1, 16), dtype=np.float32)},
    ],
)
def test_norms_with_other_weights_stay(change: dict[str, np.ndarray]) -> None:
    model = native(QUANTIZED, FEED_FORWARD.replace("a = ACTIVATION", "a = Relu (h)"), **W, **{**NORM, **change})
    assert apply(model, (fuse_activations, fuse_feed_forward, fuse_residuals, fuse_norms)) == [1, 1, 1, 0]


def test_a_norm_whose_mean_is_read_stays() -> None:
    text = FEED_FORWARD.replace("a = ACTIVATION", "a = Relu (h)").replace("y = Layer", "y, m = Layer")
    model = native(
        QUANTIZED,
        text.replace("[batch, length, 16] y)", "[batch, length, 16] y, float[batch, length, 1] m)"),
        **W,
        **NORM,
    )
    assert apply(model, (fuse_activations, fuse_feed_forward, fuse_residuals, fuse_norms)) == [1, 1, 1, 0]


ATTENTION = """g (float[batch, length, 48] x) => (float[batch, length, 16] y)
<float[batch, length, 16] q, float[batch, length, 16] k, float[batch, length, 16] v> {
    q, k, v = Split <axis = -1, num_outputs = 3> (x)
    y = poolgraph.Attention <num_heads = 2, scale = 0.3OPTIONS> (q, k, v)
}"""


@pytest.mark.parametrize("options", ["", ", causal = 1", ", softcap = 5.0"])
@pytest.mark.parametrize(
    ("lower", "operator"),
    [(lower_attention_to_native, "Attention"), (lower_attention_to_native_float, "FloatAttention")],
)
def test_attention_takes_what_its_rows_are_split_from(lower: Pass, operator: str, options: str) -> None:
    model = build(ATTENTION.replace("OPTIONS", options))
    count = int("softcap" not in options or operator == "FloatAttention")
    assert apply(model, (lower,)) == [count]
    nodes = native_nodes(model, operator)
    assert [[value.name for value in node.inputs if value is not None] for node in nodes] == [["x"]] * count


@pytest.mark.parametrize("softcap", [-5.0, 1e-7, 1e7])
def test_caps_that_the_operator_refuses_are_left_to_others(softcap: float) -> None:
    model = build(ATTENTION.replace("OPTIONS", f", softcap = {softcap:.9f}"))
    assert apply(model, (lower_attention_to_native_float,)) == [0]


def test_attention_with_a_bias_is_that_of_floats() -> None:
    text = ATTENTION.replace("[batch, length, 48] x)", "[batch, length, 48] x, float[batch, 2, length, length] b)")
    model = build(text.replace("OPTIONS", "").replace("(q, k, v)", "(q, k, v, , b)"))
    assert apply(model, (lower_attention_to_native, lower_attention_to_native_float)) == [0, 1]
    (node,) = native_nodes(model, "FloatAttention")
    assert [value and value.name for value in node.inputs] == ["x", None, None, None, "b"]


@pytest.mark.parametrize("shape", ["batch, 1, length, length", "1, 2, length, 1", "batch, 1, 1, length"])
def test_a_bias_that_is_repeated_over_heads_or_tokens_is_left_to_others(shape: str) -> None:
    text = ATTENTION.replace("[batch, length, 48] x)", f"[batch, length, 48] x, float[{shape}] b)")
    model = build(text.replace("OPTIONS", "").replace("(q, k, v)", "(q, k, v, , b)"))
    assert apply(model, (lower_attention_to_native_float,)) == [0]


def test_attention_of_rows_split_along_the_tokens_takes_the_three() -> None:
    text = ATTENTION.replace("OPTIONS", "").replace("[batch, length, 48] x", "[batch, 21, 16] x").replace("length", "7")
    model = build(text.replace("axis = -1", "axis = 1"))
    assert lower_attention_to_native(model) == 1
    (node,) = native_nodes(model, "Attention")
    assert len(node.inputs) == 3


def test_attention_with_rows_that_others_read_takes_the_three() -> None:
    text = ATTENTION.replace("OPTIONS", "").replace(
        "[batch, length, 16] y)", "[batch, length, 16] y, float[batch, length, 16] z)"
    )
    model = build(text.replace("y = pool", "z = Neg (v)\n y = pool"))
    lower_attention_to_native(model)
    (node,) = native_nodes(model, "Attention")
    assert [value.name for value in node.inputs if value is not None] == ["q", "k", "v"]


PACKED = """g (float[1, num_tokens, 48] x, int64[bounds] cu_seqlens) => (float[1, num_tokens, 16] y)
<float[1, num_tokens, 16] q, float[1, num_tokens, 16] k, float[1, num_tokens, 16] v> {
    q, k, v = Split <axis = -1, num_outputs = 3> (x)
    y = poolgraph.Attention <num_heads = 2, scale = 0.3 OPTIONS> (q, k, v, , , cu_seqlens)
}"""


@needs_native
def test_packed_attention_keeps_its_bounds() -> None:
    model = build(PACKED.replace("OPTIONS", ""))
    assert fits_native_packed(model)
    assert apply(model, (lower_attention_to_native,)) == [1]
    (node,) = native_nodes(model, "Attention")
    assert [None if value is None else value.name for value in node.inputs] == ["x", None, None, "cu_seqlens"]
    rows = random(1, 9, 48)
    packed = run(model, x=rows, cu_seqlens=np.array([0, 4, 9]))[0]
    alone = [run(model, x=part, cu_seqlens=np.array([0, part.shape[1]]))[0] for part in (rows[:, :4], rows[:, 4:])]
    np.testing.assert_array_equal(packed, np.concatenate(alone, axis=1))


@pytest.mark.parametrize(
    "text",
    [
        PACKED.replace("0.3 OPTIONS", "-0.3"),
        PACKED.replace("OPTIONS", "").replace(
            "y = poolgraph.Att", "s = poolgraph.SelectiveScan(q, k)\n y = poolgraph.Att"
        ),
        PACKED.replace("OPTIONS", "").replace("v, , ,", "v, , x,"),
        PACKED.replace("OPTIONS", "").replace("cu_seqlens)", "cu_seqlens, int64[num_tokens] attended_mask)", 1),
    ],
    ids=["a scale below 0", "a scan", "bias", "tokens that none attends to"],
)
def test_what_the_operators_do_not_compute_of_packed_texts(text: str) -> None:
    assert fits_native_packed(build(PACKED.replace("OPTIONS", ", softcap = 5.0")))
    assert not fits_native_packed(build(text))


SUMS = """g (float[batch_size, num_tokens] members, float[num_tokens, 16] rows, float[batch_size, 16] w)
=> (float[batch_size, 16] pooled, float[num_tokens, 16] projected, float[batch_size, batch_size] other)
<float[batch_size, 16] pooled> {
    pooled = MatMul (members, rows)
    projected = MatMul (rows, weight)
    back = Transpose <perm = [1, 0]> (w)
    other = MatMul (w, back)
}"""


def test_sums_over_packed_texts_become_the_operator_and_other_products_do_not() -> None:
    model = build(SUMS, weight=random(16, 16))
    assert apply(model, (lower_text_sums,)) == [1]
    (node,) = native_nodes(model, "TextSum")
    assert [value.name for value in node.inputs if value is not None] == ["members", "rows"]
    assert ops(model).count("MatMul") == 2


@pytest.mark.parametrize(("size", "count"), [(512, 1), (513, 0)])
def test_heads_that_the_operator_has_no_room_for_are_left(size: int, count: int) -> None:
    text = PACKED.replace("OPTIONS", "").replace("num_heads = 2", "num_heads = 1")
    model = build(text.replace("48", str(3 * size)).replace("16]", f"{size}]"))
    assert fits_native_packed(model) == bool(count)
    assert lower_attention_to_native(model) == count
