"""The passes of GPU graphs on little graphs: what they rewrite, and that answers stay."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from cuda_operators import run_reference
from little_graphs import (
    ATTENTION,
    SIZE,
    X,
    assert_close,
    attention_model,
    bare_attention,
    build,
    ops,
    random,
    run,
    run_semantic,
)

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.fold_attention_biases import drop_key_biases, fold_value_biases
from poolgraph.graphs.fuse_gelu import fuse_gelu
from poolgraph.graphs.fuse_rotary import MAX_LENGTH_NOTE, TABLE_STEP, fuse_rotary
from poolgraph.graphs.fuse_skip_norm import fuse_skip_norms
from poolgraph.graphs.lower_attention_cuda import fits_packed, lower_attention_to_cuda
from poolgraph.graphs.merge_projections import merge_projections
from poolgraph.graphs.pattern import add_constant
from poolgraph.graphs.split_projections import split_projections
from poolgraph.runtime.buckets import LENGTH_STEP

ROWS = "float[batch_size,sequence_length,8]"


def test_split_projections_undoes_merging() -> None:
    model = attention_model()
    expected = run_semantic(model, x=X)
    merge_projections(model)
    assert split_projections(model) == 1
    remove_dead_nodes(model)
    assert sorted(ops(model)) == ["Add"] * 3 + ["Attention"] + ["MatMul"] * 3 + ["Neg"]
    assert_close(expected, run_semantic(model, x=X))
    assert split_projections(model) == 0


def test_split_projections_of_parts_along_an_axis() -> None:
    weights = {"backbone__w": random(SIZE, 3 * SIZE), "shape": np.array([0, 0, 3, 2, 4])}
    weights |= {f"c{number}": np.array([number]) for number in range(4)} | {"axis": np.array([2])}
    parts = "".join(f"s{i} = Slice(r, c{i}, c{i + 1}, axis)  p{i} = Squeeze(s{i}, axis)  " for i in range(3))
    one = "float[batch_size,sequence_length,2,4]"
    text = f"""g ({ROWS} x) => ({one} y)
    <float[batch_size,sequence_length,3,2,4] r, {", ".join(f"{one} p{i}" for i in range(3))}>
    {{ m = MatMul(x, backbone__w)  r = Reshape(m, shape)  {parts} a = Sub(p0, p1)  y = Mul(a, p2) }}"""
    model = build(text, **weights)
    expected = run(model, x=X)
    assert split_projections(model) == 1
    remove_dead_nodes(model)
    assert "Slice" not in ops(model)
    assert ops(model).count("MatMul") == 3
    assert_close(expected, run(model, x=X))


def with_output_projection(attributes: str = "") -> ir.Model:
    tail = "z = MatMul(rows, layer__out__weight)  y = Add(z, layer__out__bias)"
    model = attention_model(replace=("y = Neg(rows)", tail))
    text_weights = {"layer__out__weight": random(SIZE, SIZE, seed=40), "layer__out__bias": random(SIZE, seed=41)}
    weights = {name.replace(".", "__"): it.const_value.numpy() for name, it in model.graph.initializers.items()}
    text = ATTENTION.replace("INPUTS", "").replace("MORE", "").replace("y = Neg(rows)", tail)
    return build(text.replace("scale=0.7", f"scale=0.7{attributes}"), **weights, **text_weights)


def test_biases_of_key_and_value_need_no_pass_over_the_rows() -> None:
    model = with_output_projection()
    expected = run_semantic(model, x=X)
    assert (drop_key_biases(model), fold_value_biases(model)) == (1, 1)
    remove_dead_nodes(model)
    assert ops(model).count("Add") == 2  # the query's, and the output's
    assert_close(expected, run_semantic(model, x=X))
    assert (drop_key_biases(model), fold_value_biases(model)) == (0, 0)


def test_the_bias_of_a_head_of_values_goes_to_every_head_that_reads_it() -> None:
    weights = {"w": random(SIZE, 4, seed=1), "b": random(4, seed=2), "o": random(SIZE, SIZE, seed=3)}
    body = """m = MatMul(x, w)  v = Add(m, b)
    r = poolgraph.Attention<num_heads=4, num_kv_heads=2, scale=0.7>(x, m, v)  p = MatMul(r, o)  y = Add(p, bo)"""
    few = "float[batch_size,sequence_length,4]"
    text = f"g ({ROWS} x) => ({ROWS} y) <{few} m, {few} v, {ROWS} r, {ROWS} p> {{ {body} }}"
    model = build(text, **weights, bo=random(SIZE, seed=4))
    expected = run_semantic(model, x=X)
    assert fold_value_biases(model) == 1
    remove_dead_nodes(model)
    assert_close(expected, run_semantic(model, x=X))


def test_layers_that_share_an_output_bias_do_not_share_what_is_folded_into_it() -> None:
    """Were it named after the output's bias alone, the second layer would get the first one's values."""
    weights = {name: random(SIZE, SIZE, seed=seed) / 4 for seed, name in enumerate(("w1", "w2", "o"))}
    weights |= {"b1": random(SIZE, seed=5), "b2": random(SIZE, seed=6), "bo": random(SIZE, seed=7)}
    layers = "".join(
        f"m{i} = MatMul({source}, w{i})  v{i} = Add(m{i}, b{i})  "
        f"r{i} = poolgraph.Attention<num_heads=2, scale=0.7>({source}, {source}, v{i})  p{i} = MatMul(r{i}, o)  "
        f"{result} = Add(p{i}, bo)  "
        for i, source, result in ((1, "x", "h"), (2, "h", "y"))
    )
    names = ", ".join(f"{ROWS} {name}" for name in ("m1", "v1", "r1", "p1", "h", "m2", "v2", "r2", "p2"))
    model = build(f"g ({ROWS} x) => ({ROWS} y) <{names}> {{ {layers} }}", **weights)
    expected = run_semantic(model, x=X)
    assert fold_value_biases(model) == 2
    remove_dead_nodes(model)
    assert_close(expected, run_semantic(model, x=X))


def test_a_softcap_keeps_the_key_bias() -> None:
    model = with_output_projection(", softcap=3.0")
    assert drop_key_biases(model) == 0


def test_sinks_keep_the_biases_of_key_and_value() -> None:
    """They are not shifted with the scores, and take their share of the weights."""
    model = with_output_projection()
    attention = next(node for node in model.graph if node.op_type == "Attention")
    attention.resize_inputs(7)
    attention.replace_input_with(6, add_constant(model.graph, "sinks", random(2)))
    assert (drop_key_biases(model), fold_value_biases(model)) == (0, 0)


def test_a_bias_that_another_node_reads_stays() -> None:
    model = attention_model(replace=("y = Neg(rows)", "s = Add(rows, v)  y = Add(s, k)"))
    assert (drop_key_biases(model), fold_value_biases(model)) == (0, 0)


SPELLED = (
    "a = Add(x, b)  h = Mul(a, half)  c = Pow(a, three)  d = Mul(c, cube)  e = Add(a, d)  f = Mul(e, root)  t = Tanh(f)"
    "  w = Add(t, unit)  y = Mul(h, w)"
)
NUMBERS = {"half": 0.5, "three": 3, "cube": 0.044715, "root": np.sqrt(2 / np.pi), "unit": 1}


@pytest.mark.parametrize(
    ("line", "fused"),
    [
        ("a = Add(x, b)  y = Gelu(a)", ["BiasGelu"]),
        (SPELLED, ["FastGelu"]),
        ('a = Add(x, b)  y = Gelu<approximate="tanh">(a)', ["FastGelu"]),
        ('y = Gelu<approximate="tanh">(x)', ["FastGelu"]),
        ("s = Sigmoid(x)  y = Mul(x, s)", ["QuickGelu"]),
        ("s = Sigmoid(x)  y = Mul(s, x)", ["QuickGelu"]),
    ],
)
def test_activations_become_one_operator(line: str, fused: list[str]) -> None:
    weights = {"b": random(SIZE, seed=3)} if ", b)" in line else {}
    weights |= {name: np.float32(it) for name, it in NUMBERS.items() if name in line}
    model = build(f"g ({ROWS} x) => ({ROWS} y) <{ROWS} a> {{ {line} }}", **weights)
    expected = run(model, x=X)
    assert fuse_gelu(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == fused
    assert_close(expected, list(run_reference(model, {"x": X}).values()))
    assert fuse_gelu(model) == 0


@pytest.mark.parametrize("changed", ["cube", "root", "three"])
def test_what_is_nearly_gelu_stays(changed: str) -> None:
    numbers = {name: np.float32(it) for name, it in (NUMBERS | {changed: 0.7}).items()}
    model = build(f"g ({ROWS} x) => ({ROWS} y) <{ROWS} a> {{ {SPELLED} }}", b=random(SIZE, seed=3), **numbers)
    assert fuse_gelu(model) == 0


def test_an_activation_of_another_one_reads_what_took_its_place() -> None:
    first = SPELLED.replace("y =", "z =")
    second = re.sub(r"\b([hcdeftw])\b", r"\g<1>2", SPELLED.partition("  ")[2].replace("(a, ", "(z, "))
    numbers = {name: np.float32(it) for name, it in NUMBERS.items()}
    model = build(f"g ({ROWS} x) => ({ROWS} y) <{ROWS} a> {{ {first}  {second} }}", b=random(SIZE, seed=3), **numbers)
    expected = run(model, x=X)
    assert fuse_gelu(model) == 2
    remove_dead_nodes(model)
    assert ops(model) == ["FastGelu", "FastGelu"]
    assert_close(expected, list(run_reference(model, {"x": X}).values()))


@pytest.mark.parametrize("operand", ["Mul(x, half)", "Pow(x, three)", "Add(x, d)"])
def test_an_activation_of_different_rows_stays(operand: str) -> None:
    """One of the three places of GELU's rows reads others."""
    text = SPELLED.replace(operand.replace("(x", "(a"), operand)
    numbers = {name: np.float32(it) for name, it in NUMBERS.items()}
    model = build(f"g ({ROWS} x) => ({ROWS} y) <{ROWS} a> {{ {text} }}", b=random(SIZE, seed=3), **numbers)
    assert fuse_gelu(model) == 0


def test_a_plain_gelu_stays() -> None:
    model = build(f"g ({ROWS} x) => ({ROWS} y) {{ y = Gelu(x) }}")
    assert fuse_gelu(model) == 0


NORM = """g ({rows} x, {rows} r) => ({rows} y, {rows} z) <{rows} m, {rows} p, {rows} s, {rows} n>
{{ m = MatMul(x, w)  p = Add(m, b)  s = Add(p, r)  n = {norm}  y = Neg(n)  z = {other} }}"""


@pytest.mark.parametrize("other", ["Neg(s)", "Abs(n)"])
@pytest.mark.parametrize(
    ("norm", "fused"),
    [
        ("LayerNormalization<axis=-1, epsilon=1.0e-5>(s, gamma, beta)", "SkipLayerNormalization"),
        ("LayerNormalization<axis=-1, epsilon=1.0e-5>(s, gamma)", "SkipLayerNormalization"),
        ("SimplifiedLayerNormalization<axis=-1, epsilon=1.0e-6>(s, gamma)", "SkipSimplifiedLayerNormalization"),
    ],
)
def test_residual_sums_become_a_part_of_norms(norm: str, fused: str, other: str) -> None:
    weights = {"w": random(SIZE, SIZE, seed=1)}
    vectors = ["b", "gamma", *(["beta"] if "beta" in norm else [])]
    weights |= {name: random(SIZE, seed=seed) for seed, name in enumerate(vectors, 2)}
    model = build(NORM.format(rows=ROWS, norm=norm, other=other), **weights)
    feeds = {"x": X, "r": random(*X.shape, seed=9)}
    expected = run(model, **feeds)
    assert fuse_skip_norms(model) == 1
    remove_dead_nodes(model)
    assert ops(model)[:2] == ["MatMul", fused]
    assert "Add" not in ops(model)
    assert_close(expected, list(run_reference(model, feeds).values()))
    assert fuse_skip_norms(model) == 0


def test_a_norm_whose_weight_is_computed_behind_the_sum_stays() -> None:
    """What is fused stands where the sum was, before its weight is there."""
    text = NORM.format(rows=ROWS, norm="LayerNormalization<axis=-1>(s, late)", other="Neg(s)")
    text = text.replace("n = Layer", "late = Add(gamma, gamma)  n = Layer").replace(
        f"{ROWS} n>", f"{ROWS} n, float[8] late>"
    )
    model = build(text, w=random(SIZE, SIZE, seed=1), b=random(SIZE), gamma=random(SIZE, seed=2))
    assert fuse_skip_norms(model) == 0


ROTARY = """g (float[batch_size,sequence_length,2,4] x, int64[batch_size,sequence_length] positions)
  => (float[batch_size,sequence_length,8] y)
<float[batch_size,2,sequence_length,4] h, float[batch_size,2,sequence_length,2] low,
 float[batch_size,2,sequence_length,2] high, float[batch_size,sequence_length,1] spread>
{
  h = Transpose<perm=[0,2,1,3]>(x)
  spread_int = Unsqueeze(positions, last)  spread = Cast<to=1>(spread_int)
  angles = Mul(spread, frequencies)  both = Concat<axis=-1>(angles, angles)
  c = Cos(both)  c1 = Mul(c, scaling)  c2 = Unsqueeze(c1, one)
  s = Sin(both)  s1 = Mul(s, scaling)  s2 = Unsqueeze(s1, one)
  low = Slice(h, zero, two, last)  high = Slice(h, two, four, last)
  minus = Neg(high)  turned = Concat<axis=-1>(minus, low)
  a = Mul(h, c2)  b = Mul(turned, s2)  sum = Add(a, b)  t = Transpose<perm=[0,2,1,3]>(sum)  y1 = Reshape(t, flat)
  y = Neg(y1)
}"""


def rotary_model(text: str = ROTARY, **more: np.ndarray) -> ir.Model:
    numbers = {"zero": [0], "one": [1], "two": [2], "four": [4], "last": [-1], "flat": [0, 0, 8]}
    weights = {name: np.array(value, dtype=np.int64) for name, value in numbers.items()}
    floats = {"frequencies": np.array([1.0, 0.01], np.float32), "scaling": np.array(1.25, np.float32)}
    model = build(text, **weights, **floats, **more)
    for node in model.graph:
        if node.outputs[0].name == "y1":
            node.outputs[0].shape = ir.Shape(["batch_size", "sequence_length", 8])
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model


def test_rotary_embeddings_become_one_operator_with_tables() -> None:
    model = rotary_model()
    feeds = {"x": random(3, 5, 2, 4), "positions": np.arange(15).reshape(3, 5) % 7}
    expected = run(model, **feeds)
    assert fuse_rotary(model) == 0  # nothing says how long the tables are
    model.metadata_props[MAX_LENGTH_NOTE] = "7"
    assert fuse_rotary(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["Reshape", "RotaryEmbedding", "Neg"]
    tables = [it for name, it in model.graph.initializers.items() if name.startswith("rotary_")]
    assert [tuple(table.shape) for table in tables] == [(8, 2), (8, 2)]  # a batch of texts of 7 tokens has 8 columns
    assert TABLE_STEP % LENGTH_STEP == 0
    assert_close(expected, list(run_reference(model, feeds).values()))


def test_a_norm_of_each_head_may_stand_behind_the_transpose() -> None:
    """As Gemma 3 has it; in front of the flattening the attention kernels take it in."""
    text = ROTARY.replace("h = Transpose", "g = Transpose").replace(
        "spread_int =", "h = SimplifiedLayerNormalization<axis=-1, epsilon=0.01>(g, gamma)  spread_int ="
    )
    model = rotary_model(
        text.replace("sequence_length,4] h,", "sequence_length,4] h, float[batch_size,2,sequence_length,4] g,"),
        gamma=random(4),
    )
    feeds = {"x": random(3, 5, 2, 4), "positions": np.arange(15).reshape(3, 5) % 7}
    expected = run(model, **feeds)
    model.metadata_props[MAX_LENGTH_NOTE] = "7"
    assert fuse_rotary(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["SimplifiedLayerNormalization", "Reshape", "RotaryEmbedding", "Neg"]
    assert_close(expected, list(run_reference(model, feeds).values()))


def test_what_fits_packed_graphs() -> None:
    def fits(**changes: object) -> bool:
        sizes = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 8, **changes}
        return fits_packed(bare_attention(str(sizes.pop("attributes", "")), **sizes))  # type: ignore[arg-type]

    assert fits()
    assert fits(inputs=("mask",))
    assert fits(attributes=", left_window=4, right_window=4")
    assert not fits(attributes=", left_window=4, right_window=-1")
    assert not fits(attributes=", causal=1")
    assert not fits(attributes=", softcap=2.0")
    assert not fits(inputs=("bias",))
    assert not fits(num_kv_heads=1)
    assert not fits(head_dim=4)


def test_tokens_that_none_attends_to_do_not_fit_packed_graphs() -> None:
    model = bare_attention("", num_heads=2, num_kv_heads=2, head_dim=8, inputs=("mask",))
    assert fits_packed(model)
    with_hidden_tokens(model)
    assert not fits_packed(model)


def with_hidden_tokens(model: ir.Model) -> None:
    axes = ir.Shape(["batch_size", "sequence_length"])
    model.graph.inputs.append(ir.Value(name="attended_mask", shape=axes, type=ir.TensorType(ir.DataType.INT64)))


@pytest.mark.parametrize("attributes", ["", ", causal=1", ", left_window=3, right_window=3"])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_tokens_that_none_attends_to_are_hidden_by_a_bias(attributes: str, num_kv_heads: int) -> None:
    """Lengths would hide the last ones instead, and leave what these attend to undefined."""
    model = bare_attention(attributes, num_heads=4, num_kv_heads=num_kv_heads, head_dim=8, inputs=("mask",))
    rows = [random(2, 6, heads * 8, seed=heads) for heads in (4, num_kv_heads, num_kv_heads)]
    names = [str(value.name) for value in model.graph.inputs]
    mask = np.array([[True, False, True, True, False, False], [True] * 6])
    feeds = dict(zip(names, [*rows, mask], strict=True))
    expected = run_semantic(model, **feeds)
    with_hidden_tokens(model)
    lower_attention_to_cuda(model)
    kernels = [node for node in model.graph if node.domain == "com.microsoft"]
    assert [node.op_type for node in kernels] == ["MultiHeadAttention"]
    assert kernels[0].inputs[4] is None
    found = list(run_reference(model, {**feeds, "attended_mask": mask.astype(np.int64)}).values())
    assert_close(expected, found)


def test_the_forms_of_attention() -> None:
    def form(inputs: tuple[str, ...] = ("mask",), attributes: str = "", **sizes: int) -> list[str]:
        counts = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 8, **sizes}
        model = bare_attention(attributes, inputs=inputs, **counts)
        assert lower_attention_to_cuda(model) == 1
        kernels = [node.op_type for node in model.graph if node.domain == "com.microsoft"]
        return kernels or ["standard"]

    assert form() == ["MultiHeadAttention"]
    assert form(("mask", "bias")) == ["MultiHeadAttention"]
    assert form(attributes=", left_window=3, right_window=3") == ["MultiHeadAttention"]
    assert form(attributes=", causal=1") == ["GroupQueryAttention"]
    assert form(attributes=", causal=1, left_window=3") == ["GroupQueryAttention"]
    assert form(attributes=", causal=1, softcap=5.0") == ["GroupQueryAttention"]
    assert form(num_kv_heads=2) == ["GroupQueryAttention"]
    assert form(num_kv_heads=2, attributes=", left_window=3, right_window=3") == ["MultiHeadAttention"]
    assert form(attributes=", softcap=5.0") == ["standard"]
    assert form(attributes=", causal=1", head_dim=4) == ["standard"]
