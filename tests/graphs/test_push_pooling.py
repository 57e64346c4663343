"""Pooling pushed down on little graphs: the same numbers, fewer rows, and what is left alone."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from little_graphs import SIZE, assert_close, build, ops, random, run, run_semantic
from native_passes import run as run_native

from poolgraph.graphs.attention_node import attention_nodes, read_attention
from poolgraph.graphs.cleanup import clear_notes, remove_dead_nodes
from poolgraph.graphs.families import select_family
from poolgraph.graphs.lower_attention import lower_attention_to_cpu, lower_attention_to_standard
from poolgraph.graphs.lower_attention_native import lower_attention_to_native_float
from poolgraph.graphs.merge_projections import merge_projections
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pattern import add_constant
from poolgraph.graphs.pipeline import CPU_FP32, NATIVE_FP32, semantic_passes
from poolgraph.graphs.products import apart_weights, find_products
from poolgraph.graphs.push_pooling import note_products_as_in, note_row_products, push_pooling
from poolgraph.graphs.quantize_products import Recipe, Scheme, quantize_products
from poolgraph.runtime.native_library import can_run

ROWS = "float[batch_size,sequence_length,8]"
LAYER = f"""g ({ROWS} xINPUTS) => (float[batch_size,8] pooledOUTPUTS)
<{ROWS} q, {ROWS} k, {ROWS} v, {ROWS} rows, {ROWS} o, {ROWS} a, {ROWS} n, {ROWS} h, {ROWS} d, {ROWS} e, {ROWS} z,
 float[1,2,sequence_length,sequence_length] bias>
{{
  xq = MatMul(x, backbone__query__weight)  q = Add(xq, backbone__query__bias)
  xk = MatMul(x, backbone__key__weight)    k = Add(xk, backbone__key__bias)
  xv = MatMul(x, backbone__value__weight)  v = Add(xv, backbone__value__bias)
  rows = poolgraph.Attention<num_heads=2, scale=0.7ATTRIBUTES>(q, k, vMORE)
  o = MatMul(rows, backbone__out__weight)
  a = Add(o, x)
  n = LayerNormalization<axis=-1>(a, norm)
  f = MatMul(n, backbone__up__weight)
  h = Gelu(f)
  d = MatMul(h, backbone__down__weight)
  e = Add(d, n)
  z = LayerNormalization<axis=-1>(e, norm)
  POOLED
}}"""
NAMES = ("query", "key", "value", "out", "up", "down")
PROJECTIONS = NAMES[:3]
FIRST, LAST = "pooled = Gather<axis=1>(z, zero)", "pooled = Gather<axis=1>(z, last)"


def layer_weights() -> dict[str, np.ndarray]:
    weights = {f"backbone__{name}__weight": random(SIZE, SIZE, seed=i) / 2 for i, name in enumerate(NAMES)}
    weights |= {f"backbone__{name}__bias": random(SIZE, seed=9 + i) for i, name in enumerate(PROJECTIONS)}
    weights |= {name: np.array(index) for name, index in (("zero", 0), ("last", -1), ("third", 2))}
    return weights | {"norm": np.linspace(0.5, 1.5, SIZE, dtype=np.float32), "axis_one": np.array([1])}


def layer(
    pooled: str = FIRST,
    *,
    attributes: str = "",
    inputs: str = "",
    more: str = "",
    replace: tuple[str, str] = ("", ""),
    is_output: bool = False,
) -> ir.Model:
    """One layer and its pooling; ``is_output``: its rows are an answer too, that of the token family."""
    text = LAYER.replace(*replace).replace("INPUTS", inputs).replace("ATTRIBUTES", attributes).replace("MORE", more)
    text = text.replace("POOLED", pooled)
    if is_output:
        text = re.sub(r"\bz\b", "raw_token_embeddings", text.replace(f", {ROWS} z,", ","))
    text = text.replace("OUTPUTS", f", {ROWS} raw_token_embeddings" if is_output else "")
    return build(text, **{name: array for name, array in layer_weights().items() if name in text})


def lengths_seen(model: ir.Model, **feeds: np.ndarray) -> dict[str, int]:
    """The rows of a text that each product is computed of, by the name of its weight, watched as it runs."""
    products = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer()]
    model.graph.outputs.clear()
    model.graph.outputs.extend(node.outputs[0] for node in products)
    for value in model.graph.outputs:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
    names = [node.inputs[1].name.split(".")[1] for node in products]
    return {name: rows.shape[1] for name, rows in zip(names, run(model, **feeds), strict=True)}


# --- what it rewrites


ATTENTIONS = {
    "bidirectional": "",
    "causal": ", causal=1",
    "left window": ", left_window=2",
    "nothing to the left": ", left_window=0",
    "causal left window": ", causal=1, left_window=1, right_window=0",
    "both windows": ", left_window=2, right_window=1",
    "softcap": ", softcap=1.5",
}
LOWERINGS = {"standard": lower_attention_to_standard, "cpu": lower_attention_to_cpu}


@pytest.mark.parametrize("lower", LOWERINGS.values(), ids=LOWERINGS)
@pytest.mark.parametrize("pooled", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize("attributes", ATTENTIONS.values(), ids=ATTENTIONS)
def test_push_pooling_keeps_the_numbers(attributes: str, pooled: str, lower) -> None:
    model = layer(pooled, attributes=attributes)
    feeds = [{"x": random(3, length, SIZE, seed=length)} for length in (1, 2, 5)]
    expected = [run_semantic(model, **feed) for feed in feeds]
    assert push_pooling(model) == 15 - 4  # all but the products and biases of keys and values
    assert push_pooling(model) == 0
    for feed, answers in zip(feeds, expected, strict=True):
        assert_close(answers, run_semantic(model, **feed))
    lower(model)
    for feed, answers in zip(feeds, expected, strict=True):
        assert_close(answers, run(model, **feed))


@pytest.mark.parametrize("pooled", [FIRST, LAST], ids=["first", "last"])
def test_push_pooling_leaves_one_row_to_all_products_but_keys_and_values(pooled: str) -> None:
    before, model = layer(pooled), layer(pooled)
    push_pooling(model)
    for one in (before, model):
        lower_attention_to_cpu(one)
    assert "MultiHeadAttention" in ops(model)
    x = random(3, 5, SIZE)
    assert lengths_seen(before, x=x) == dict.fromkeys(NAMES, 5)
    assert lengths_seen(model, x=x) == {**dict.fromkeys(NAMES, 1), "key": 5, "value": 5}


def test_push_pooling_with_a_mask_and_a_bias_of_each_pair() -> None:
    inputs = ", bool[batch_size,sequence_length] mask, float[1,2,sequence_length,sequence_length] bias"
    x, mask = random(2, 4, SIZE), np.array([[1, 0, 1, 1], [0, 1, 1, 0]], dtype=bool)
    for pooled, attributes in ((FIRST, ", right_window=1"), (LAST, ", left_window=2"), (LAST, "")):
        model = layer(pooled, attributes=attributes, inputs=inputs, more=", mask, bias")
        feeds = {"x": x, "mask": mask, "bias": random(1, 2, 4, 4, seed=7)}
        expected = run_semantic(model, **feeds)
        assert push_pooling(model) > 0
        lower_attention_to_standard(model)
        assert_close(expected, run(model, **feeds))


@pytest.mark.parametrize("pooled", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize("attributes", ATTENTIONS.values(), ids=ATTENTIONS)
def test_push_pooling_leaves_half_of_a_bias_by_distance(attributes: str, pooled: str) -> None:
    expand = "bias = poolgraph.DistanceBias(distances)  xq = "
    inputs = ", float[2,columns] distances, float[2] sinks"
    model = layer(pooled, attributes=attributes, inputs=inputs, more=", , bias, , sinks", replace=("xq = ", expand))
    lengths = (1, 2, 5)
    feeds = [{"x": random(3, n, SIZE, seed=n), "distances": random(2, 2 * n - 1), "sinks": random(2)} for n in lengths]
    expected = [run_semantic(model, **feed) for feed in feeds]
    assert push_pooling(model) == 15 - 4
    remove_dead_nodes(model)
    assert "DistanceBias" not in ops(model)
    native = model.clone()
    assert lower_attention_to_native_float(native) == 1
    lower_attention_to_cpu(model)
    for feed, answers in zip(feeds, expected, strict=True):
        assert_close(answers, run(model, **feed))
        if can_run(NATIVE_FP32):
            assert_close(answers, run_native(native, **feed))


def test_push_pooling_makes_plain_attention_of_every_window() -> None:
    """What is left needs no rule of its own: one query, and the keys that it sees."""
    model = layer(LAST, attributes=", causal=1, left_window=1, right_window=0")
    push_pooling(model)
    (node,) = attention_nodes(model)
    attention = read_attention(node)
    assert (attention.left_window, attention.right_window, attention.is_causal) == (-1, -1, False)
    assert list(attention.query.shape) == ["batch_size", 1, SIZE]
    assert all(value.producer().op_type == "Slice" for value in (attention.key, attention.value))


HEADS = f"""g ({ROWS} x, float[sequence_length,4] cosines) => (float[batch_size,8] pooled)
<{ROWS} n, {ROWS} q, {ROWS} v, {ROWS} rows, {ROWS} z, float[batch_size,sequence_length,2,4] q4,
 float[batch_size,2,sequence_length,4] qt, float[batch_size,2,sequence_length,4] qr,
 float[batch_size,sequence_length,2,4] qb, {ROWS} qf, float[batch_size,sequence_length,2,4] k4,
 float[batch_size,2,sequence_length,4] kt, float[batch_size,2,sequence_length,4] kr,
 float[batch_size,sequence_length,2,4] kb, {ROWS} kf, float[batch_size,sequence_length,1] s>
{{
  p = Mul(x, x)  s = ReduceMean<keepdims=1>(p, minus_one)  r = Sqrt(s)  i = Reciprocal(r)  n = Mul(x, i)
  q = MatMul(n, backbone__query__weight)  q4 = Reshape(q, heads)  qt = Transpose<perm=[0,2,1,3]>(q4)
  qr = Mul(qt, cosines)  qb = Transpose<perm=[0,2,1,3]>(qr)  qf = Reshape(qb, flat)
  kk = MatMul(n, backbone__key__weight)  k4 = Reshape(kk, heads)  kt = Transpose<perm=[0,2,1,3]>(k4)
  kr = Mul(kt, cosines)  kb = Transpose<perm=[0,2,1,3]>(kr)  kf = Reshape(kb, flat)
  v = MatMul(n, backbone__value__weight)
  rows = poolgraph.Attention<num_heads=2, scale=0.7, causal=1>(qf, kf, v)
  z = Add(rows, x)
  pooled = Gather<axis=1>(z, last)
}}"""


def test_push_pooling_through_heads_and_rotary_positions() -> None:
    weights = {f"backbone__{name}__weight": random(SIZE, SIZE, seed=i) for i, name in enumerate(PROJECTIONS)}
    shapes = {"heads": np.array([0, 0, 2, 4]), "flat": np.array([0, 0, 8]), "minus_one": np.array([-1])}
    model = build(HEADS, **weights, **shapes, last=np.array(-1))
    feeds = {"x": random(2, 5, SIZE), "cosines": random(5, 4, seed=3)}
    expected = run_semantic(model, **feeds)
    assert push_pooling(model) == 8
    assert push_pooling(model) == 0
    assert ops(model).count("Slice") == 3  # the norm, the cosines and the residual
    lower_attention_to_cpu(model)
    assert_close(expected, run(model, **feeds))
    assert lengths_seen(model, **feeds) == {"query": 1, "key": 5, "value": 5}


# --- what it leaves alone


DECLINED = {
    "mean": "pooled = ReduceMean<keepdims=0>(z, axis_one)",
    "maximum": "pooled = ReduceMax<keepdims=0>(z, axis_one)",
    "another row": "pooled = Gather<axis=1>(z, third)",
    "two rows": "head = Gather<axis=1>(z, zero)  end = Gather<axis=1>(z, last)  pooled = Add(head, end)",
    "rows mixed": "w = CumSum(z, axis_one)  pooled = Gather<axis=1>(w, zero)",
    "rows compared": "w = Softmax<axis=1>(z)  pooled = Gather<axis=1>(w, zero)",
    "another reader": "w = ReduceSum<keepdims=0>(z, axis_one)  t = Gather<axis=1>(z, zero)  pooled = Add(t, w)",
    "another axis": "pooled = Gather<axis=2>(z, zero)",
    "a computed row": "shape = Shape(x)  i = Gather(shape, zero)  pooled = Gather<axis=1>(z, i)",
}


@pytest.mark.parametrize("pooled", DECLINED.values(), ids=DECLINED)
def test_push_pooling_declines(pooled: str) -> None:
    model = layer(pooled)
    before = ir.to_proto(model).SerializeToString()
    assert push_pooling(model) == 0
    assert note_row_products(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_push_pooling_declines_where_the_rows_are_an_answer_too() -> None:
    model = layer(is_output=True)
    assert push_pooling(model) == 0


def test_push_pooling_declines_where_no_product_gets_smaller() -> None:
    """A slice would cost more than what is computed of fewer rows."""
    body = "z = Neg(x)  pooled = Gather<axis=1>(z, zero)"
    model = build(f"g ({ROWS} x) => (float[batch_size,8] pooled) <{ROWS} z> {{ {body} }}", zero=np.array(0))
    assert push_pooling(model) == 0
    assert ops(model) == ["Neg", "Gather"]


def test_push_pooling_declines_packed_texts() -> None:
    model = layer(inputs=", int64[bounds] cu_seqlens", more=", , , cu_seqlens")
    push_pooling(model)
    (node,) = attention_nodes(model)
    assert list(read_attention(node).query.shape) == ["batch_size", "sequence_length", SIZE]


def test_push_pooling_declines_what_may_read_values_unseen() -> None:
    body = "chosen = If(yes) <then_branch = a () => (float[n] t) { t = Neg(z) }, "
    body += "else_branch = b () => (float[n] u) { u = Abs(z) }>  "
    body += "head = Gather<axis=1>(z, zero)  pooled = Add(chosen, head)"
    assert push_pooling(layer(body, inputs=", bool yes")) == 0


def test_push_pooling_stops_at_what_mixes_rows() -> None:
    """Behind it one row is enough; the layer in front is left whole."""
    model = layer(LAST)
    for node in model.graph:
        if node.op_type == "Gelu":
            total = ir.node("CumSum", [node.inputs[0], add_constant(model.graph, "one", np.array(1))])
            total.outputs[0].shape = node.inputs[0].shape
            model.graph.insert_before(node, total)
            node.replace_input_with(0, total.outputs[0])
    x = random(2, 5, SIZE)
    expected = run_semantic(model, x=x)
    assert push_pooling(model) > 0
    assert push_pooling(model) == 0
    lower_attention_to_cpu(model)
    assert_close(expected, run(model, x=x))
    assert lengths_seen(model, x=x) == {**dict.fromkeys(NAMES, 5), "down": 1}


# --- weights that graphs share


def test_queries_that_are_pushed_down_are_set_apart() -> None:
    model = layer(LAST)
    assert note_row_products(model) == 1
    assert note_row_products(model) == 0
    assert apart_weights(model) == {"backbone.query.weight"}
    assert merge_projections(model) == 0
    names = [group.name for group in find_products(model)]
    assert names[:2] == ["backbone.query.weight", "backbone.key.weight+backbone.value.weight"]
    clear_notes(model)
    assert apart_weights(model) == frozenset()


def test_another_layout_sets_apart_what_the_uniform_one_does() -> None:
    uniform, padded = layer(LAST), layer(DECLINED["a computed row"])
    run_passes(uniform, semantic_passes(None))
    run_passes(padded, semantic_passes(uniform))
    assert apart_weights(padded) == {"backbone.query.weight"}
    assert sorted(set(padded.graph.initializers) - {"zero"}) == sorted(set(uniform.graph.initializers) - {"last"})
    again = layer("pooled = ReduceMax<keepdims=0>(z, axis_one)")
    pass_ = note_products_as_in(uniform)
    assert (pass_.__name__, pass_(again), pass_(again)) == ("note_row_products", 1, 0)


def test_families_share_the_initializers_of_the_layer() -> None:
    semantic = layer(LAST, is_output=True)
    run_passes(semantic, semantic_passes(None))
    sequence, token = (select_family(semantic, family, finished=False) for family in ("sequence", "token"))
    run_passes(sequence, (*CPU_FP32.sequence_passes, *CPU_FP32.passes))
    run_passes(token, CPU_FP32.passes)
    weights = [
        {name for name in model.graph.initializers if name.startswith("backbone.")} for model in (sequence, token)
    ]
    assert weights[0] == weights[1] == {name.replace("__", ".") for name in layer_weights() if "__" in name}
    assert [node.metadata_props for node in sequence.graph if node.metadata_props] == []
    x = random(3, 5, SIZE)
    assert lengths_seen(sequence, x=x)["query"] == 1
    assert set(lengths_seen(token, x=x).values()) == {5}


@pytest.mark.parametrize("scheme", ["token", "static", "weights"])
def test_rows_pushed_down_are_quantized_as_all_rows_are(scheme: Scheme) -> None:
    semantic = layer(LAST, is_output=True)
    run_passes(semantic, semantic_passes(None))
    recipes = {group.name: Recipe(scheme=scheme, scale=0.03) for group in find_products(semantic)}
    assert len(recipes) == 5
    models = []
    for first in ((), CPU_FP32.sequence_passes):
        model = select_family(semantic, "sequence", finished=False)
        assert model is not None
        run_passes(model, (*first, quantize_products(recipes), *CPU_FP32.passes))
        models.append(model)
    whole, pushed = models
    assert ops(pushed).count("MatMulIntegerToFloat") == (0 if scheme == "weights" else 5)
    assert {name for name in whole.graph.initializers if "backbone" in name} == {
        name for name in pushed.graph.initializers if "backbone" in name
    }
    x = random(3, 5, SIZE)
    assert_close(run(whole, x=x), run(pushed, x=x))


def test_layers_that_share_weights_keep_their_queries_whole() -> None:
    """As ALBERT's: were the last one's queries set apart, those of all layers would have to be."""
    shared = "s = MatMul(other, backbone__NAME__weight)  t = ReduceMax<keepdims=0>(s, axis_one)"
    more = "u = Gather<axis=1>(z, last)  pooled = Add(t, u)"
    feeds = {"x": random(3, 5, SIZE), "other": random(3, 4, SIZE)}
    for name, queries in (("query", 5), ("up", 1)):
        inputs = ", float[batch_size,others,8] other"
        model = layer(f"{shared.replace('NAME', name)}  {more}", inputs=inputs)
        assert note_row_products(model) == (name == "up")
        assert merge_projections(model) == (name == "query")
        remove_dead_nodes(model)
        expected = run_semantic(model, **feeds)
        assert push_pooling(model) > 0
        lower_attention_to_cpu(model)
        assert_close(expected, run(model, **feeds))
        seen = lengths_seen(model, **feeds)
        assert (seen.get("query_key_value", seen["query"]), seen["out"], seen["down"]) == (queries, 1, 1)


def test_a_product_of_shared_weights_stays_whole_beside_another_of_its_source() -> None:
    body = """a = MatMul(x, backbone__a)  b = MatMul(x, backbone__b)  c = Mul(a, b)  head = Gather<axis=1>(c, zero)
    s = MatMul(other, backbone__a)  t = ReduceMax<keepdims=0>(s, axis_one)  pooled = Add(t, head)"""
    text = f"g ({ROWS} x, float[batch_size,others,8] other) => (float[batch_size,8] pooled)"
    numbers = {"zero": np.array(0), "axis_one": np.array([1])}
    weights = {f"backbone__{name}": random(SIZE, SIZE, seed=seed) for seed, name in enumerate("ab")}
    model = build(f"{text} <{ROWS} a, {ROWS} b, {ROWS} c> {{ {body} }}", **weights, **numbers)
    feeds = {"x": random(3, 5, SIZE), "other": random(3, 4, SIZE)}
    expected = run(model, **feeds)
    assert push_pooling(model) == 2
    assert_close(expected, run(model, **feeds))
    of_all_rows = [
        node.inputs[1].name for node in model.graph if node.op_type == "MatMul" and node.inputs[0].name == "x"
    ]
    assert of_all_rows == ["backbone.a"]
