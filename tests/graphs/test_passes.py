"""Passes on little graphs: the numbers stay, the nodes change as said, the second run finds nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from little_graphs import MASK, X, assert_close, attention_model, build, ops, random, run, run_semantic

from poolgraph.graphs.cleanup import clear_notes, fold_constants, remove_dead_nodes
from poolgraph.graphs.families import select_family
from poolgraph.graphs.fold_reshapes import fold_reshapes
from poolgraph.graphs.fold_transposes import fold_transposes, store_transposed_weights
from poolgraph.graphs.manifest import Rewrites
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pipeline import CPU_FP32, PORTABLE, SEMANTIC_PASSES

# --- fold_reshapes


RESHAPES = """g (float[batch_size,sequence_length,8] x) => (float[batch_size,sequence_length,8] z)
<float[batch_size,sequence_length,2,4] y, float[batch_size,sequence_length,8] flat>
{
  shape = Shape(x)
  front = Slice(shape, zero, two)
  target = Concat<axis=0>(front, tail)
  y = Reshape(x, target)
  back = Concat<axis=0>(front, whole)
  flat = Reshape(y, back)
  z = Neg(flat)
}"""
RESHAPE_WEIGHTS = {
    "zero": np.array([0], np.int64),
    "two": np.array([2], np.int64),
    "tail": np.array([2, 4], np.int64),
    "whole": np.array([8], np.int64),
}


def test_fold_reshapes_fixes_targets_and_drops_round_trips() -> None:
    model, x = build(RESHAPES, **RESHAPE_WEIGHTS), random(3, 5, 8)
    expected = run(model, x=x)
    assert fold_reshapes(model) == 3  # two targets, one round trip
    assert model.graph.node(-1).inputs[0].name == "x"
    assert_close(expected, run(model, x=x))
    assert fold_reshapes(model) == 0
    remove_dead_nodes(model)
    assert ops(model) == ["Neg"]
    assert_close(expected, run(model, x=x))


def test_fold_reshapes_copies_equal_axes_and_infers_one_other() -> None:
    model = build(
        """g (float[batch_size,sequence_length,8] x, int64[2] target) => (float[rows,8] z)
        <float[rows,8] y> { y = Reshape<allowzero=1>(x, target)  z = Neg(y) }"""
    )
    x = random(3, 5, 8)
    expected = run(model, x=x, target=np.array([15, 8]))
    assert fold_reshapes(model) == 1
    node = model.graph.node(0)
    assert node.inputs[1].const_value.numpy().tolist() == [-1, 8]
    assert "allowzero" not in node.attributes
    assert_close(expected, run(model, x=x, target=np.array([15, 8])))
    assert fold_reshapes(model) == 0


@pytest.mark.parametrize(
    "text",
    [
        # two axes that are not the source's: one -1 cannot stand for both
        "g (float[rows,8] x, int64[3] t) => (float[batch_size,sequence_length,8] z) { z = Reshape(x, t) }",
        # the result's shape is unknown
        "g (float[rows,8] x, int64[3] t) => (float[rows,8] z) { y = Reshape(x, t)  z = Reshape(y, t) }",
    ],
)
def test_fold_reshapes_declines_what_it_cannot_know(text: str) -> None:
    model = build(text)
    before = ops(model), next(node.inputs[1].name for node in model.graph)
    assert fold_reshapes(model) == 0
    assert (ops(model), next(node.inputs[1].name for node in model.graph)) == before


def test_fold_reshapes_keeps_a_round_trip_that_is_an_output() -> None:
    model = build(
        """g (float[batch_size,6] x) => (float[batch_size,6] z)
        <float[batch_size,2,3] y> { y = Reshape(x, there)  z = Reshape(y, back) }""",
        there=np.array([0, 2, 3], np.int64),
        back=np.array([0, 6], np.int64),
    )
    x = random(4, 6)
    assert fold_reshapes(model) == 0
    assert_close([x], run(model, x=x))


def test_fold_reshapes_keeps_a_pair_that_ends_in_another_shape() -> None:
    model = build(
        """g (float[batch_size,6] x) => (float[batch_size,3,2] w)
        <float[batch_size,2,3] y, float[batch_size,3,2] z>
        { y = Reshape(x, there)  z = Reshape(y, other)  w = Neg(z) }""",
        there=np.array([0, 2, 3], np.int64),
        other=np.array([0, 3, 2], np.int64),
    )
    assert fold_reshapes(model) == 0
    assert ops(model) == ["Reshape", "Reshape", "Neg"]


# --- fold_transposes


def test_fold_transposes_drops_pairs_that_undo_each_other() -> None:
    model = build(
        """g (float[a,b,c] x) => (float[a,b,c] w)
        { y = Transpose<perm=[1,2,0]>(x)  z = Transpose<perm=[2,0,1]>(y)  w = Neg(z) }"""
    )
    x = random(2, 3, 4)
    expected = run(model, x=x)
    assert fold_transposes(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["Neg"]
    assert_close(expected, run(model, x=x))
    assert fold_transposes(model) == 0


def test_fold_transposes_declines_other_pairs_and_outputs() -> None:
    model = build(
        """g (float[a,b,c] x) => (float[c,a,b] w, float[a,b,c] out)
        { y = Transpose<perm=[1,2,0]>(x)  z = Transpose<perm=[1,2,0]>(y)
          w = Neg(z)  out = Transpose<perm=[2,0,1]>(y) }"""
    )
    assert fold_transposes(model) == 0
    assert ops(model) == ["Transpose", "Transpose", "Neg", "Transpose"]


def test_fold_transposes_reads_a_transpose_without_perm_as_a_reversal() -> None:
    model = build("g (float[a,b] x) => (float[a,b] w) { y = Transpose(x)  z = Transpose(y)  w = Neg(z) }")
    x = random(2, 3)
    fold_transposes(model)
    assert_close([-x], run(model, x=x))


# --- store_transposed_weights


def test_store_transposed_weights_stores_each_once() -> None:
    model = build(
        """g (float[n,4] x) => (float[n,6] y, float[n,6] z)
        { t = Transpose<perm=[1,0]>(w)  u = Transpose<perm=[1,0]>(w)
          p = MatMul(x, t)  y = Neg(p)  z = MatMul(x, u) }""",
        w=random(6, 4),
    )
    x = random(3, 4, seed=1)
    expected = run(model, x=x)
    assert store_transposed_weights(model) == 2
    assert ops(model) == ["MatMul", "Neg", "MatMul"]
    assert [name for name in model.graph.initializers if name != "w"] == ["w.transposed"]
    assert tuple(model.graph.initializers["w.transposed"].shape) == (4, 6)
    assert_close(expected, run(model, x=x))
    assert store_transposed_weights(model) == 0


def test_store_transposed_weights_leaves_transposes_of_values() -> None:
    model = build("g (float[2,3] x) => (float[3,2] y) { t = Transpose<perm=[1,0]>(x)  y = Neg(t) }")
    assert store_transposed_weights(model) == 0
    assert ops(model) == ["Transpose", "Neg"]


def test_store_transposed_weights_stores_shapes_that_are_computed() -> None:
    text = """g (float[n,8] x) => (float[n,2] y) <float[NOTED] s>
        { shape = Concat<axis=0>(first, second)  s = Reshape(w, shape)  y = MatMul(x, s) }"""
    weights = {"w": random(4, 2, 2), "first": np.array([8]), "second": np.array([2])}
    x = random(3, 8, seed=1)
    for noted, count in (("8, 2", 1), ("m, 2", 0)):
        model = build(text.replace("NOTED", noted), **weights)
        expected = run(model, x=x)
        assert store_transposed_weights(model) == count
        assert ("w.reshaped_8_2" in model.graph.initializers) == bool(count)
        assert_close(expected, run(model, x=x))


def test_store_transposed_weights_stores_experts_side_by_side() -> None:
    model = build(
        """g (float[n,8] x, float[3,4] z) => (float[n,2] y, float[12] r)
        { t = Transpose<perm=[0,2,1]>(w)  i = Identity(t)  s = Reshape<allowzero=1>(i, shape)  y = MatMul(x, s)
          r = Reshape(z, flat) }""",
        w=random(4, 2, 2),
        shape=np.array([8, 2]),
        flat=np.array([-1]),
    )
    x, z = random(3, 8, seed=1), random(3, 4, seed=2)
    expected = run(model, x=x, z=z)
    assert store_transposed_weights(model) == 3
    assert ops(model) == ["MatMul", "Reshape"]
    assert model.graph.node(0).inputs[1].name == "w.transposed_0_2_1.reshaped_8_2"
    assert_close(expected, run(model, x=x, z=z))
    assert store_transposed_weights(model) == 0


def test_store_transposed_weights_does_not_transpose_where_the_permutation_keeps_the_order() -> None:
    model = build(
        "g (float[n,4] x) => (float[n,4] y) { t = Transpose<perm=[0,1]>(w)  y = MatMul(x, t) }", w=random(4, 4)
    )
    x = random(3, 4, seed=1)
    expected = run(model, x=x)
    store_transposed_weights(model)
    assert_close(expected, run(model, x=x))


def test_store_transposed_weights_keeps_a_graph_output() -> None:
    model = build("g (float[n,4] x) => (float[4,6] t) { t = Transpose<perm=[1,0]>(w) }", w=random(6, 4))
    expected = run(model, x=random(1, 4))
    store_transposed_weights(model)
    assert [value.name for value in model.graph.outputs] == ["t"]
    assert_close(expected, run(model, x=random(1, 4)))


# --- cleanup


def test_fold_constants_computes_what_depends_on_no_input() -> None:
    model = build(
        "g (float[n,4] x) => (float[n,4] y) { s = Add(a, b)  t = Mul(s, s)  y = Mul(x, t) }", a=random(4), b=random(4)
    )
    x = random(3, 4, seed=1)
    expected = run(model, x=x)
    assert fold_constants(model) == 2
    assert ops(model) == ["Mul"]
    assert_close(expected, run(model, x=x))
    assert fold_constants(model) == 0


def test_fold_constants_leaves_no_constant_nodes() -> None:
    model = build("g (float[n] x) => (float[n] y) { c = Constant<value = float[1] {3.0}>()  y = Mul(x, c) }")
    fold_constants(model)
    assert ops(model) == ["Mul"]
    assert_close([3 * random(2)], run(model, x=random(2)))


def test_remove_dead_nodes() -> None:
    model = build(
        """g (float[n] x) => (float[n] y)
        { a = Neg(x)  b = Neg(x)  unused = Exp(x)  i = Identity(a)  y = Mul(i, b)  more = Add(unused, spare) }""",
        spare=random(1),
    )
    x = random(4)
    expected = run(model, x=x)
    assert remove_dead_nodes(model) == 5  # two dead, one identity, one repeated, one initializer
    assert ops(model) == ["Neg", "Mul"]
    assert not model.graph.initializers
    assert_close(expected, run(model, x=x))
    assert remove_dead_nodes(model) == 0


def test_clear_notes_leaves_nothing_of_the_tracer() -> None:
    model = build("g (float[n] x) => (float[n] y) { a = Neg(x)  y = Mul(a, w) }", w=random(1))
    model.doc_string = "from /home/someone"
    model.producer_name, model.producer_version = "pytorch", "9.9"
    model.graph.metadata_props["path"] = "/home/someone/graph"
    for node in model.graph:
        node.metadata_props["stack"] = "/home/someone/file.py"
        node.outputs[0].metadata_props["value"] = "/home/someone"
    model.graph.inputs[0].metadata_props["value"] = "/home/someone"
    assert clear_notes(model) == 4  # the model, the graph and two nodes
    data = ir.to_proto(model).SerializeToString()
    assert b"/home/someone" not in data
    assert b"pytorch" not in data
    assert [node.name for node in model.graph] == ["Neg_0", "Mul_1"]
    assert clear_notes(model) == 0
    assert ir.to_proto(model).SerializeToString() == data


# --- families


FAMILIES = """g (float[batch_size,sequence_length,8] x) => (OUTPUTS)
{
  pooled = ReduceMean<keepdims=0>(x, axis)
  sentence_embedding = Abs(pooled)
  raw_token_embeddings = Mul(x, factor)
  token_embeddings = Abs(raw_token_embeddings)
}"""
FAMILY_SHAPES = {
    "pooled": "float[batch_size,8]",
    "sentence_embedding": "float[batch_size,8]",
    "raw_token_embeddings": "float[batch_size,sequence_length,8]",
    "token_embeddings": "float[batch_size,sequence_length,8]",
}


def family_model(*names: str) -> ir.Model:
    outputs = ", ".join(f"{FAMILY_SHAPES[name]} {name}" for name in names or FAMILY_SHAPES)
    return build(FAMILIES.replace("OUTPUTS", outputs), axis=np.array([1], np.int64), factor=random(8, seed=5))


@pytest.mark.parametrize(
    ("family", "finished", "outputs", "nodes"),
    [
        ("sequence", True, ["pooled", "sentence_embedding"], ["ReduceMean", "Abs"]),
        ("sequence", False, ["pooled"], ["ReduceMean"]),
        ("token", True, ["raw_token_embeddings", "token_embeddings"], ["Mul", "Abs"]),
        ("token", False, ["raw_token_embeddings"], ["Mul"]),
    ],
)
def test_select_family(family, finished, outputs, nodes) -> None:
    model = family_model()
    everything = dict(zip(FAMILY_SHAPES, run(model, x=X), strict=True))
    before = ir.to_proto(model).SerializeToString()
    selected = select_family(model, family, finished=finished)
    assert ir.to_proto(model).SerializeToString() == before
    assert [value.name for value in selected.graph.outputs] == outputs
    assert ops(selected) == nodes
    assert list(selected.graph.initializers) == (["axis"] if family == "sequence" else ["factor"])
    assert_close([everything[name] for name in outputs], run(selected, x=X))


def test_select_family_without_normalization_keeps_the_finished_value() -> None:
    selected = select_family(family_model("sentence_embedding"), "sequence", finished=False)
    assert [value.name for value in selected.graph.outputs] == ["sentence_embedding"]


def test_select_family_that_there_is_not() -> None:
    assert select_family(family_model("pooled", "sentence_embedding"), "token", finished=True) is None


# --- the pipelines


@pytest.mark.parametrize("target", [PORTABLE, CPU_FP32], ids=lambda target: target.name)
def test_pipelines_keep_the_numbers_and_report_their_rewrites(target) -> None:
    padded = target.layout == "padded"
    inputs = ", bool[batch_size,sequence_length] mask" if padded else ""
    model = attention_model(inputs=inputs, more=", mask" if padded else "")
    feeds = {"x": X, **({"mask": MASK} if padded else {})}
    expected = run_semantic(model, **feeds)
    reports = run_passes(model, SEMANTIC_PASSES + target.passes)
    assert [report.name for report in reports][-len(target.passes) :] == [p.__name__ for p in target.passes]
    rewrites = {report.name: report.rewrites for report in reports}
    assert rewrites["merge_projections"] == 1
    assert [count for name, count in rewrites.items() if name.startswith("lower_attention")] == [1]
    assert_close(expected, run(model, **feeds))
    assert all(report.rewrites == 0 for report in run_passes(model, SEMANTIC_PASSES + target.passes))


def test_run_passes_counts_rewrites() -> None:
    model = build("g (float[n] x) => (float[n] y) { dead = Exp(x)  y = Neg(x) }")
    assert run_passes(model, [remove_dead_nodes]) == (Rewrites(name="remove_dead_nodes", rewrites=1),)
