"""Lowering of attention on little graphs, against the semantic op in numpy."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from little_graphs import (
    BIAS,
    MASK,
    X,
    assert_close,
    attention_feeds,
    attention_model,
    bare_attention,
    evaluator,
    ops,
    random,
    run,
    run_semantic,
    session,
)

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.lower_attention import lower_attention_to_cpu, lower_attention_to_standard
from poolgraph.graphs.lower_distance_biases import lower_distance_biases
from poolgraph.graphs.merge_projections import merge_projections


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


@pytest.mark.parametrize("merged", [True, False])
def test_cpu_attention_takes_keys_that_no_query_sees(merged: bool) -> None:
    model = attention_model(inputs=", bool[batch_size,sequence_length] mask", more=", mask")
    mask = np.vstack([MASK[:2], [[False] * 5]])  # the last text has not one
    expected = run_semantic(model, x=X, mask=mask)
    assert not merged or merge_projections(model) == 1
    lower_attention_to_cpu(model)
    remove_dead_nodes(model)
    assert ops(model)[-2:] == ["Attention" if merged else "MultiHeadAttention", "Neg"]
    assert "Softmax" not in ops(model)
    assert_close(expected, run(model, x=X, mask=mask))
    disturbed = np.where(mask[:, :, None] | ~mask.any(1)[:, None, None], X, 50 * X)
    before, after = (run(model, x=x, mask=mask)[0][mask] for x in (X, disturbed))
    np.testing.assert_array_equal(before, after)


SHAPES = {
    "one head": {"num_heads": 1, "num_kv_heads": 1, "head_dim": 8},
    "equal heads": {"num_heads": 4, "num_kv_heads": 4, "head_dim": 8},
    "shared heads": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8},
    "all share one": {"num_heads": 3, "num_kv_heads": 1, "head_dim": 16},
    "odd size": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6},
}
KINDS = {
    "bidirectional": "",
    "causal": ", causal=1, right_window=0",
    "causal window": ", causal=1, left_window=4, right_window=0",
    "itself alone": ", causal=1, left_window=0, right_window=0",
    "symmetric window": ", left_window=3, right_window=3",
    "lopsided window": ", left_window=-1, right_window=2",
    "softcap": ", causal=1, right_window=0, softcap=1.5",
    "softcap window": ", causal=1, left_window=4, right_window=0, softcap=1.5",
}
EXTRAS = ((), ("mask",), ("bias",), ("mask", "bias"), ("sinks",), ("mask", "distances", "sinks"))


@pytest.mark.parametrize("lower", [lower_attention_to_standard, lower_attention_to_cpu])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inputs", EXTRAS, ids="-".join)
def test_every_kind_of_attention_equals_the_semantic_op(lower, kind: str, shape: str, inputs: tuple[str, ...]) -> None:
    """Every row is compared, those of padding and those that see no key too."""
    model = bare_attention(KINDS[kind], inputs=inputs, **SHAPES[shape])
    semantic = evaluator(model)
    assert lower(model) == 1
    assert lower(model) == 0
    assert lower_distance_biases(model) == int("distances" in inputs)
    if lower is lower_attention_to_standard:
        assert {node.domain for node in model.graph} == {""}
    lowered = session(model)
    for length in (1, 3, 11):
        feeds = attention_feeds(4, length, **SHAPES[shape])
        mask = np.ones((4, length), dtype=bool)  # whole, padded on the right, padded on the left, nothing
        mask[1, length // 2 + 1 :] = mask[2, : length // 2] = mask[3] = False
        heads = SHAPES[shape]["num_heads"]
        given = {"mask": mask, "bias": random(1, heads, length, length, seed=40), "sinks": random(heads, seed=41) * 2}
        given["distances"] = random(heads, 2 * length - 1, seed=42)
        feeds |= {name: given[name] for name in inputs}
        found = lowered.run(None, feeds)
        assert np.isfinite(found[0]).all()
        assert_close(semantic.run(None, feeds), found)


@pytest.mark.parametrize(
    ("shape", "kind", "inputs", "kernel"),
    [
        ("equal heads", "bidirectional", (), "MultiHeadAttention"),
        ("equal heads", "bidirectional", ("mask",), "MultiHeadAttention"),
        ("equal heads", "causal", (), "GroupQueryAttention"),
        ("shared heads", "causal", (), "GroupQueryAttention"),
        ("shared heads", "causal window", (), "GroupQueryAttention"),
        ("odd size", "causal", (), "Softmax"),
        ("equal heads", "causal", ("mask",), "Softmax"),
        ("equal heads", "causal", ("bias",), "Softmax"),
        ("equal heads", "causal", ("sinks",), "Softmax"),
        ("equal heads", "bidirectional", ("sinks",), "Softmax"),
        ("equal heads", "bidirectional", ("distances",), "Softmax"),
        ("equal heads", "symmetric window", (), "Softmax"),
        ("shared heads", "softcap", (), "Softmax"),
        ("shared heads", "bidirectional", (), "Softmax"),
    ],
)
def test_cpu_attention_takes_the_kernel_that_was_measured(shape, kind, inputs, kernel) -> None:
    model = bare_attention(KINDS[kind], inputs=inputs, **SHAPES[shape])
    lower_attention_to_cpu(model)
    found = set(ops(model)) & {"MultiHeadAttention", "GroupQueryAttention", "Softmax"}
    assert found == {kernel}


@pytest.mark.parametrize("lower", [lower_attention_to_standard, lower_attention_to_cpu])
@pytest.mark.parametrize("kind", ["causal", "causal window", "symmetric window"])
def test_layers_share_what_depends_on_the_length_alone(lower, kind: str) -> None:
    shape = SHAPES["shared heads"]
    models = [bare_attention(KINDS[kind], layers=layers, **shape) for layers in (1, 2, 3)]
    feeds = attention_feeds(2, 9, **shape)
    expected = run_semantic(models[2], **feeds)
    for model in models:
        lower(model)
        remove_dead_nodes(model)
    sizes = [Counter(ops(model)) for model in models]
    assert not {"Shape", "Range", "Where", "Expand", "Cast"} & set(sizes[2] - sizes[1])
    assert not {"Shape", "Range", "Where", "Expand", "Cast"} & set(sizes[1] - sizes[0])
    assert_close(expected, run(models[2], **feeds))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["equal heads", "shared heads"])
def test_standard_attention_under_padding_equals_the_text_alone(side: str, kind: str, shape: str) -> None:
    model = bare_attention(KINDS[kind], inputs=("mask",), **SHAPES[shape])
    lower_attention_to_standard(model)
    feeds = attention_feeds(3, 12, **SHAPES[shape])
    lengths = (12, 1, 7)
    at = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
    mask = np.zeros((3, 12), dtype=bool)
    for row, tokens in zip(mask, at, strict=True):
        row[tokens] = True
    lowered = session(model)
    together = lowered.run(None, {"mask": mask, **feeds})[0]
    for index, tokens in enumerate(at):
        alone = {name: rows[index : index + 1, tokens] for name, rows in feeds.items()}
        found = lowered.run(None, {"mask": np.ones((1, lengths[index]), dtype=bool), **alone})[0]
        np.testing.assert_allclose(together[index, tokens], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lower", [lower_attention_to_standard, lower_attention_to_cpu])
@pytest.mark.parametrize("inputs", [("packed",), ("mask", "packed")], ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["equal heads", "shared heads"])
def test_packed_texts_see_themselves_alone(lower, shape: str, kind: str, inputs: tuple[str, ...]) -> None:
    bounds = np.array([0, 1, 8, 12, 13, 20])
    feeds = attention_feeds(1, 20, **SHAPES[shape])
    mask = np.arange(20)[None] % 5 != 4  # what sees no key is finite, and nothing else
    model = bare_attention(KINDS[kind], inputs=inputs, layers=2, **SHAPES[shape])
    alone = bare_attention(KINDS[kind], inputs=inputs[:-1], layers=2, **SHAPES[shape])
    assert lower(model) == 2
    remove_dead_nodes(model)
    assert Counter(ops(model))["ReduceSum"] == 1
    given = {"mask": mask} if "mask" in inputs else {}
    found = run(model, cu_seqlens=bounds, **feeds, **given)[0]
    semantic = evaluator(alone)
    for start, end in itertools.pairwise(bounds):
        expected = semantic.run(None, {name: rows[:, start:end] for name, rows in (feeds | given).items()})
        seen = mask[:, start:end] if given else slice(None)
        np.testing.assert_allclose(found[:, start:end][seen], expected[0][seen], rtol=1e-5, atol=1e-6)


LENGTHS_OF_BATCHES = (*range(1, 49), *range(51, 127, 5), *range(127, 131))
"""All that kernels leave over of blocks of up to 48, above that all that is left of 16, and the sides of 128."""


@pytest.mark.parametrize("inputs", [(), ("mask",), ("sinks",)], ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["equal heads", "shared heads"])
def test_cpu_attention_gives_the_same_bits_in_every_batch(shape: str, kind: str, inputs: tuple[str, ...]) -> None:
    model = bare_attention(KINDS[kind], inputs=inputs, **SHAPES[shape])
    lower_attention_to_cpu(model)
    infer = session(model)
    for length in LENGTHS_OF_BATCHES:
        feeds = attention_feeds(7, length, **SHAPES[shape])
        if "mask" in inputs:
            feeds["mask"] = random(7, length, seed=length) > -0.5
        sinks = {"sinks": random(SHAPES[shape]["num_heads"])} if "sinks" in inputs else {}
        alone = np.concatenate(
            [infer.run(None, {name: rows[i : i + 1] for name, rows in feeds.items()} | sinks)[0] for i in range(7)]
        )
        for batch_size in (2, 3, 7):
            found = infer.run(None, {name: rows[:batch_size] for name, rows in feeds.items()} | sinks)[0]
            np.testing.assert_array_equal(found, alone[:batch_size], err_msg=f"{batch_size} texts of {length}")
