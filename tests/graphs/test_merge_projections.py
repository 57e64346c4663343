"""Merging of projections on little graphs, against the semantic op in numpy."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from little_graphs import (
    ATTENTION,
    SIZE,
    X,
    assert_close,
    attention_model,
    build,
    ops,
    random,
    run,
    run_semantic,
)

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.lower_attention import lower_attention_to_cpu
from poolgraph.graphs.merge_projections import merge_projections


def test_merge_projections_makes_one_product() -> None:
    model = attention_model()
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["MatMul", "Add", "Split", "Attention", "Neg"]
    assert "layer.query_key_value.weight" in model.graph.initializers
    assert tuple(model.graph.initializers["layer.query_key_value.weight"].shape) == (SIZE, 3 * SIZE)
    assert sorted(model.graph.initializers) == [
        "constant.split_8_8_8",
        "layer.query_key_value.bias",
        "layer.query_key_value.weight",
    ]
    assert_close(expected, run_semantic(model, x=X))
    assert merge_projections(model) == 0


def test_merge_projections_without_biases() -> None:
    text = ATTENTION.replace("INPUTS", "").replace("MORE", "")
    for name in ("q", "k", "v"):
        full = {"q": "query", "k": "key", "v": "value"}[name]
        text = text.replace(f"x{name} = MatMul(x, layer__{full}__weight)", f"{name} = MatMul(x, layer__{full}__weight)")
        text = text.replace(f"{name} = Add(x{name}, layer__{full}__bias)", "")
    weights = {f"layer__{n}__weight": random(SIZE, SIZE, seed=i) for i, n in enumerate(("query", "key", "value"))}
    model = build(text, **weights)
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["MatMul", "Split", "Attention", "Neg"]
    assert_close(expected, run_semantic(model, x=X))
    lower_attention_to_cpu(model)  # the Attention kernel wants a bias: the split feeds MultiHeadAttention
    assert ops(model) == ["MatMul", "Split", "MultiHeadAttention", "Neg"]
    assert_close(expected, run(model, x=X))


def test_merge_projections_of_layers_that_share_their_weights() -> None:
    """ALBERT's layers are one layer, run again and again: one merged matrix serves them all."""
    once, again = "y = Neg(rows)", "xa = MatMul(rows, layer__query__weight)  qa = Add(xa, layer__query__bias)"
    for letter, name in (("b", "key"), ("c", "value")):
        again += f"  x{letter} = MatMul(rows, layer__{name}__weight)  q{letter} = Add(x{letter}, layer__{name}__bias)"
    again += "  z = poolgraph.Attention<num_heads=2, scale=0.7>(qa, qb, qc)  y = Neg(z)"
    model = attention_model(replace=(once, again))
    for name in ("qa", "qb", "qc"):
        next(value for node in model.graph for value in node.outputs if value.name == name).shape = ir.Shape(X.shape)
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 2
    remove_dead_nodes(model)
    merged = ["constant.split_8_8_8", "layer.query_key_value.bias", "layer.query_key_value.weight"]
    assert sorted(model.graph.initializers) == merged
    assert_close(expected, run_semantic(model, x=X))


@pytest.mark.parametrize(
    "replace",
    [
        ("y = Neg(rows)", "y = Add(rows, q)"),  # a projection that another node reads
        ("(q, k, v)", "(q, k, k)"),  # one value twice
        ("k = Add(xk, layer__key__bias)", "k = Identity(xk)"),  # not a product and a bias
        ("xk = MatMul(x, layer__key__weight)    k = Add(xk, layer__key__bias)", "k = MatMul(x, layer__key__weight)"),
        ("xv = MatMul(x, layer__value__weight)", "z = Relu(x) xv = MatMul(z, layer__value__weight)"),  # another source
    ],
    ids=["used elsewhere", "one value twice", "no projection", "biases differ", "sources differ"],
)
def test_merge_projections_declines(replace: tuple[str, str]) -> None:
    model = attention_model(replace=replace)
    before, expected = ops(model), run_semantic(model, x=X)
    assert merge_projections(model) == 0
    assert ops(model) == before
    assert_close(expected, run_semantic(model, x=X))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_merge_projections_leaves_what_is_computed(name: str) -> None:
    model = attention_model()
    stored = model.graph.initializers[f"layer.key.{name}"]
    (use,) = stored.uses()
    node = ir.node("Neg", [stored])
    node.outputs[0].shape, node.outputs[0].type = stored.shape, stored.type
    model.graph.insert_before(use.node, node)
    use.node.replace_input_with(use.idx, node.outputs[0])
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 0
    assert_close(expected, run_semantic(model, x=X))


def test_merge_projections_of_queries_and_keys_that_share_their_weights() -> None:
    text = ATTENTION.replace("INPUTS", "").replace("MORE", "").replace("layer__key__", "layer__query__")
    names = [(name, kind) for name in ("query", "value") for kind in ("weight", "bias")]
    shapes = {"weight": (SIZE, SIZE), "bias": (SIZE,)}
    model = build(text, **{f"layer__{n}__{k}": random(*shapes[k], seed=i) for i, (n, k) in enumerate(names)})
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 1
    remove_dead_nodes(model)
    assert "layer.query_key_value.weight" in model.graph.initializers
    assert_close(expected, run_semantic(model, x=X))


def two_flat_layers() -> ir.Model:
    lines, weights, rows = [], {}, "x"
    for layer in (0, 1):
        for index, name in enumerate("qkv"):
            weights[f"w{name}{layer}"] = random(SIZE, SIZE, seed=10 * layer + index)
            lines.append(f"{name}{layer} = MatMul({rows}, w{name}{layer})")
        lines.append(f"rows{layer} = poolgraph.Attention<num_heads=2, scale=0.7>(q{layer}, k{layer}, v{layer})")
        rows = f"rows{layer}"
    shape = "float[batch_size,sequence_length,8]"
    values = ", ".join(f"{shape} {name}{layer}" for layer in (0, 1) for name in ("q", "k", "v", "rows"))
    text = f"g ({shape} x) => ({shape} y) <{values}> {{ {'  '.join(lines)}  y = Neg(rows1) }}"
    return build(text, **weights)


def test_merge_projections_keeps_layers_with_names_that_share_nothing_apart() -> None:
    model = two_flat_layers()
    expected = run_semantic(model, x=X)
    merge_projections(model)
    assert_close(expected, run_semantic(model, x=X))


def test_merge_projections_of_layers_that_share_the_weights_of_queries_alone() -> None:
    model = two_flat_layers()
    (use,) = model.graph.initializers["wq1"].uses()
    use.node.replace_input_with(1, model.graph.initializers["wq0"])
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 2
    assert_close(expected, run_semantic(model, x=X))


def test_merge_projections_leaves_weights_of_more_axes() -> None:
    model = two_flat_layers()
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy()[None], name=value.name)
        value.shape = ir.Shape([1, SIZE, SIZE])
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 0
    assert_close(expected, run_semantic(model, x=X))


def test_merge_projections_survives_names_of_different_depth() -> None:
    model = attention_model()
    value = model.graph.initializers["layer.key.weight"]
    value.name = "layer.self.key.weight"
    expected = run_semantic(model, x=X)
    merge_projections(model)
    assert_close(expected, run_semantic(model, x=X))


GROUPED = """g (float[batch_size,sequence_length,8] x) => (float[batch_size,sequence_length,8] y)
<float[batch_size,sequence_length,8] q, float[batch_size,sequence_length,4] k, float[batch_size,sequence_length,4] v,
 float[batch_size,sequence_length,4] p, float[batch_size,sequence_length,8] rows>
{
  q = MatMul(x, wq)  PRODUCTS
  rows = poolgraph.Attention<num_heads=4, num_kv_heads=2, scale=0.7, causal=1, right_window=0>(q, k, v)
  y = Neg(rows)
}"""


def grouped_model(products: str) -> ir.Model:
    weights = {name: random(8, width, seed=width + ord(name[1])) for name, width in {"wq": 8, "wk": 4, "wv": 4}.items()}
    return build(GROUPED.replace("PRODUCTS", products), **weights)


def test_merge_projections_of_different_widths() -> None:
    model = grouped_model("k = MatMul(x, wk)  v = MatMul(x, wv)")
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["MatMul", "Split", "Attention", "Neg"]
    assert_close(expected, run_semantic(model, x=X))
    lower_attention_to_cpu(model)
    assert_close(expected, run(model, x=X))


def test_merge_projections_leaves_what_is_turned_before_the_attention() -> None:
    """As rotary positions and norms of the heads do."""
    model = grouped_model("p = MatMul(x, wk)  k = Sin(p)  v = MatMul(x, wv)")
    before, expected = ops(model), run_semantic(model, x=X)
    assert merge_projections(model) == 0
    assert ops(model) == before
    assert_close(expected, run_semantic(model, x=X))


def test_merge_projections_leaves_a_bias_that_is_no_row() -> None:
    model = attention_model()
    for name in ("query", "key", "value"):
        replaced = model.graph.initializers[f"layer.{name}.bias"]
        replaced.const_value = ir.tensor(random(1, seed=3), name=replaced.name)
        replaced.shape = ir.Shape([1])
    expected = run_semantic(model, x=X)
    assert merge_projections(model) == 0
    assert_close(expected, run_semantic(model, x=X))
