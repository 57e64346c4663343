"""Merging of projections and lowering of attention on little graphs, against the semantic op in numpy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from little_graphs import (
    ATTENTION,
    BIAS,
    MASK,
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

from poolgraph.errors import ExportError
from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.lower_attention import lower_attention_to_cpu, lower_attention_to_standard
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
        "layer.query_key_value.bias",
        "layer.query_key_value.weight",
        "split_8_8_8",
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


def test_merge_projections_survives_names_of_different_depth() -> None:
    model = attention_model()
    value = model.graph.initializers["layer.key.weight"]
    value.name = "layer.self.key.weight"
    expected = run_semantic(model, x=X)
    merge_projections(model)
    assert_close(expected, run_semantic(model, x=X))


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_standard_attention(merged: bool, with_mask: bool, with_bias: bool) -> None:
    inputs = ", bool[batch_size,sequence_length] mask" if with_mask else ""
    inputs += ", float[1,2,sequence_length,sequence_length] bias" if with_bias else ""
    more = {(0, 0): "", (1, 0): ", mask", (0, 1): ", , bias", (1, 1): ", mask, bias"}[with_mask, with_bias]
    model = attention_model(inputs=inputs, more=more)
    feeds = {"x": X, **({"mask": MASK} if with_mask else {}), **({"bias": BIAS} if with_bias else {})}
    expected = run_semantic(model, **feeds)
    assert not merged or merge_projections(model) == 1
    assert lower_attention_to_standard(model) == 1
    remove_dead_nodes(model)
    assert {node.domain for node in model.graph} == {""}
    assert set(model.graph.opset_imports) == {""}
    found = Counter(ops(model))
    assert found["Softmax"] == 1
    assert found["MatMul"] == (3 if merged else 5)
    assert found["Where"] == int(with_mask)
    assert_close(expected, run(model, **feeds))
    assert lower_attention_to_standard(model) == 0


def test_standard_attention_shares_one_additive_mask() -> None:
    model = attention_model(
        inputs=", bool[batch_size,sequence_length] mask",
        more=", mask",
        replace=(
            "y = Neg(rows)",
            "z = Neg(rows)  other = poolgraph.Attention<num_heads=2, scale=0.7>(z, z, z, mask)  y = Neg(other)",
        ),
    )
    expected = run_semantic(model, x=X, mask=MASK)
    assert lower_attention_to_standard(model) == 2
    remove_dead_nodes(model)
    assert Counter(ops(model))["Where"] == 1
    assert_close(expected, run(model, x=X, mask=MASK))


@pytest.mark.parametrize("lower", [lower_attention_to_standard, lower_attention_to_cpu])
def test_attention_that_feeds_another(lower) -> None:
    chained = "z = poolgraph.Attention<num_heads=2, scale=0.3>(rows, rows, rows)  y = Neg(z)"
    model = attention_model(replace=("y = Neg(rows)", chained))
    expected = run_semantic(model, x=X)
    assert lower(model) == 2
    assert_close(expected, run(model, x=X))


def test_standard_attention_gives_padding_no_weight() -> None:
    model = attention_model(inputs=", bool[batch_size,sequence_length] mask", more=", mask")
    lower_attention_to_standard(model)
    disturbed = np.where(MASK[:, :, None], X, 50 * X)
    before, after = (run(model, x=x, mask=MASK)[0][MASK] for x in (X, disturbed))
    np.testing.assert_array_equal(before, after)


def test_cpu_attention_over_a_merged_projection_is_one_kernel() -> None:
    model = attention_model()
    expected = run_semantic(model, x=X)
    merge_projections(model)
    assert lower_attention_to_cpu(model) == 1
    remove_dead_nodes(model)
    assert [(node.domain, node.op_type) for node in model.graph] == [("com.microsoft", "Attention"), ("", "Neg")]
    assert set(model.graph.opset_imports) == {"", "com.microsoft"}
    assert_close(expected, run(model, x=X))
    assert lower_attention_to_cpu(model) == 0


def test_cpu_attention_without_a_merged_projection_is_multi_head_attention() -> None:
    model = attention_model()
    expected = run_semantic(model, x=X)
    assert lower_attention_to_cpu(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["MatMul", "Add"] * 3 + ["MultiHeadAttention", "Neg"]
    assert_close(expected, run(model, x=X))
    assert lower_attention_to_cpu(model) == 0


def test_cpu_attention_keeps_a_projection_that_is_read_elsewhere() -> None:
    model = attention_model()
    merge_projections(model)
    split = next(node for node in model.graph if node.op_type == "Split")
    neg = model.graph.node(-1)
    extra = ir.node("Add", [neg.inputs[0], split.outputs[0]])
    model.graph.insert_before(neg, extra)
    neg.replace_input_with(0, extra.outputs[0])
    expected = run_semantic(model, x=X)
    lower_attention_to_cpu(model)
    remove_dead_nodes(model)
    assert "MultiHeadAttention" in ops(model)
    assert_close(expected, run(model, x=X))


def test_cpu_attention_with_a_bias_is_standard_operators() -> None:
    model = attention_model(inputs=", float[1,2,sequence_length,sequence_length] bias", more=", , bias")
    expected = run_semantic(model, x=X, bias=BIAS)
    merge_projections(model)
    assert lower_attention_to_cpu(model) == 1
    remove_dead_nodes(model)
    assert {node.domain for node in model.graph} == {""}
    assert "Softmax" in ops(model)
    assert_close(expected, run(model, x=X, bias=BIAS))


def test_cpu_attention_refuses_a_mask() -> None:
    model = attention_model(inputs=", bool[batch_size,sequence_length] mask", more=", mask")
    with pytest.raises(ExportError, match="has a mask"):
        lower_attention_to_cpu(model)
