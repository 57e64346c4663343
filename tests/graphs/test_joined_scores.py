"""Biases by distance and sinks on little graphs: expanded, handed to the native operator, pushed down, captured."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from cuda_operators import run_reference
from little_graphs import (
    assert_close,
    attention_feeds,
    bare_attention,
    build,
    evaluator,
    ops,
    random,
    run,
    run_semantic,
)
from native_graphs import needs_native
from native_passes import run as run_native

from poolgraph.graphs.check_cuda import check_cuda
from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.lower_attention import lower_attention_to_cpu, lower_attention_to_standard
from poolgraph.graphs.lower_attention_cuda import fits_packed, lower_attention_to_cuda
from poolgraph.graphs.lower_attention_native import (
    fits_native_packed,
    lower_attention_to_native,
    lower_attention_to_native_float,
)
from poolgraph.graphs.lower_distance_biases import lower_distance_biases
from poolgraph.graphs.native import native_nodes
from poolgraph.graphs.pipeline import NATIVE_FP32, NATIVE_INT8

SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
KINDS = {"all": "", "causal": ", causal=1", "window": ", left_window=2, right_window=3"}
JOINED = (("distances",), ("sinks",), ("distances", "sinks"))
EXPANDED = "g (float[3,columns] d) => (float[1,3,n,n] b) { b = poolgraph.DistanceBias(d) }"

each_kind = pytest.mark.parametrize("kind", KINDS)
each_joined = pytest.mark.parametrize("inputs", JOINED, ids="-".join)


def feeds_of(inputs: tuple[str, ...], batch_size: int, length: int) -> dict[str, np.ndarray]:
    given = {
        "mask": np.arange(length)[None] < np.arange(length, length - batch_size, -1)[:, None],
        "distances": random(4, 2 * length - 1, seed=7),
        "sinks": random(4, seed=8) * 3,
    }
    return attention_feeds(batch_size, length, **SHAPE) | {name: given[name] for name in inputs}


# --- expanded


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_a_bias_by_distance_is_expanded(length: int) -> None:
    model, table = build(EXPANDED), random(3, 2 * length - 1)
    expected = run_semantic(model, d=table)
    assert expected[0].shape == (1, 3, length, length)
    assert expected[0][0, 1, 0, -1] == table[1, -1]
    assert lower_distance_biases(model) == 1
    assert lower_distance_biases(model) == 0
    np.testing.assert_array_equal(run(model, d=table)[0], expected[0])


def test_a_bias_by_distance_that_nothing_reads_is_not_expanded() -> None:
    model = bare_attention("", inputs=("distances",), **SHAPE)
    assert lower_attention_to_native_float(model) == 1
    assert lower_distance_biases(model) == 0


# --- for CUDA


@each_kind
@pytest.mark.parametrize("inputs", [("mask", *it) for it in JOINED], ids="-".join)
def test_cuda_graphs_hold_biases_by_distance_and_sinks(kind: str, inputs: tuple[str, ...]) -> None:
    model = bare_attention(KINDS[kind], inputs=inputs, **SHAPE)
    semantic = evaluator(model)
    assert not fits_packed(model)
    assert lower_attention_to_cuda(model) == 1
    lower_distance_biases(model)
    remove_dead_nodes(model)
    assert ("MultiHeadAttention" in ops(model)) == ("sinks" not in inputs and kind != "causal")
    assert check_cuda(model) == []
    feeds = feeds_of(inputs, 3, 9)
    (expected,), found = semantic.run(None, feeds), run_reference(model, feeds)["z"]
    assert_close([expected[feeds["mask"]]], [found[feeds["mask"]]])


# --- native


@needs_native
@each_kind
@each_joined
@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_native_attention_takes_them(kind: str, inputs: tuple[str, ...], length: int) -> None:
    model = bare_attention(KINDS[kind], inputs=inputs, **SHAPE)
    semantic = evaluator(model)
    assert lower_attention_to_native(model) == 0  # that of integers has neither
    assert lower_attention_to_native_float(model) == 1
    remove_dead_nodes(model)
    (node,) = native_nodes(model, "FloatAttention")
    names = ["q", "k", "v", None, None, "distances" if "distances" in inputs else None, "sinks"]
    assert [value and value.name for value in node.inputs] == names[: 7 if "sinks" in inputs else 6]
    feeds = feeds_of(inputs, 3, length)
    assert_close(semantic.run(None, feeds), run_native(model, **feeds))


@needs_native
@each_kind
@each_joined
def test_native_attention_takes_them_of_packed_texts(kind: str, inputs: tuple[str, ...]) -> None:
    bounds = np.array([0, 1, 8, 12, 13, 20])
    model = bare_attention(KINDS[kind], inputs=(*inputs, "packed"), **SHAPE)
    semantic, feeds = evaluator(model), feeds_of(inputs, 1, 20) | {"cu_seqlens": bounds}
    standard = model.clone()
    assert fits_native_packed(model)
    assert lower_attention_to_native_float(model) == 1
    remove_dead_nodes(model)
    lower_attention_to_standard(standard)
    lower_distance_biases(standard)
    expected, found = semantic.run(None, feeds), run_native(model, **feeds)
    assert_close(expected, found)
    assert_close(expected, run(standard, **feeds))
    alone = bare_attention(KINDS[kind], inputs=inputs, **SHAPE)
    lower_attention_to_native_float(alone)
    remove_dead_nodes(alone)
    for start, end in itertools.pairwise(bounds):
        part = {name: rows[:, start:end] if name in ("q", "k", "v") else rows for name, rows in feeds.items()}
        del part["cu_seqlens"]
        np.testing.assert_array_equal(run_native(alone, **part)[0], found[0][:, start:end])


@pytest.mark.parametrize("heads", [1, 3])
def test_a_bias_by_distance_of_other_heads_is_left_to_others(heads: int) -> None:
    model = bare_attention("", inputs=("distances", "packed"), **SHAPE)
    bias = next(node.outputs[0] for node in model.graph if node.op_type == "DistanceBias")
    bias.shape = ir.Shape([1, heads, "sequence_length", "sequence_length"])
    assert not fits_native_packed(model)
    assert lower_attention_to_native_float(model) == 0


def test_any_other_bias_is_not_of_packed_texts() -> None:
    model = bare_attention("", inputs=("distances", "packed"), **SHAPE)
    attention = next(node for node in model.graph if node.op_type == "Attention")
    changed = ir.node("Neg", [attention.inputs[4]])
    changed.outputs[0].shape, changed.outputs[0].type = attention.inputs[4].shape, attention.inputs[4].type
    model.graph.insert_before(attention, changed)
    attention.replace_input_with(4, changed.outputs[0])
    assert not fits_native_packed(model)
    assert lower_attention_to_native_float(model) == 0


@pytest.mark.parametrize("target", [NATIVE_FP32, NATIVE_INT8], ids=lambda it: it.precision)
def test_native_graphs_hold_no_bias_for_each_pair(target) -> None:
    model = bare_attention("", inputs=("distances",), layers=3, **SHAPE)
    for one in target.passes:
        one(model)
    assert ops(model) == ["FloatAttention"] * 3 + ["Neg"]


# --- one query a text


ONE_QUERY = """g (float[batch_size,1,32] q, float[batch_size,sequence_length,16] k,
 float[batch_size,sequence_length,16] v, float[4] sinks) => (float[batch_size,1,32] z)
<float[batch_size,1,32] y> {
    y = poolgraph.Attention<num_heads=4, num_kv_heads=2, scale=0.7>(q, k, v, , , , sinks)  z = Neg(y)
}"""


def test_one_query_of_shared_heads_with_sinks_has_the_same_bits_in_any_batch() -> None:
    model = build(ONE_QUERY)
    semantic = evaluator(model)
    lower_attention_to_cpu(model)
    for length in (1, 2, 5, 33, 130):
        feeds = feeds_of((), 7, length)
        feeds["q"], sinks = feeds["q"][:, -1:], {"sinks": random(4) * 2}
        together = run(model, **feeds, **sinks)
        assert_close(semantic.run(None, feeds | sinks), together)
        alone = [run(model, **{name: rows[i : i + 1] for name, rows in feeds.items()}, **sinks)[0] for i in range(7)]
        np.testing.assert_array_equal(np.concatenate(alone), together[0])
