"""Pooling pushed down in packed graphs: the same numbers of one row a text, and what is left alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from architecture_graphs import FIRST_WORD
from little_graphs import SIZE, assert_close, build, ops, random, run, run_semantic
from packed_graphs import PackedGraph, Traced, trace_packed
from tiny_heads import save_model
from tiny_models import HeadSpec, save_head
from tiny_nomic import publish_nomic

from poolgraph.graphs.attention_node import attention_nodes, read_attention
from poolgraph.graphs.families import select_family
from poolgraph.graphs.lower_attention import lower_attention_to_standard
from poolgraph.graphs.lower_distance_biases import lower_distance_biases
from poolgraph.graphs.passes import Pass, run_passes
from poolgraph.graphs.pipeline import PACKED_FP32
from poolgraph.graphs.products import find_products, set_apart
from poolgraph.graphs.push_pooling import note_row_products, push_pooling

ROWS, VECTORS = "float[1,num_tokens,8]", "float[num_tokens,8]"
LAYER = f"""g ({ROWS} x, int64[bounds] cu_seqlensINPUTS) => (float[batch_size,8] pooledOUTPUTS)
<{ROWS} q, {ROWS} k, {ROWS} v, {ROWS} rows, {ROWS} o, {ROWS} a, {ROWS} n, {ROWS} g, {ROWS} u, {ROWS} h, {ROWS} d,
 {ROWS} e, {ROWS} z, {VECTORS} flat, float[8] one_row, float[1,2,num_tokens,num_tokens] expanded,
 float[batch_size,8] head, float[batch_size,8] end, float[batch_size] number>
{{
  EXPANDED q = MatMul(x, backbone__query__weight)
  k = MatMul(x, backbone__key__weight)
  v = MatMul(x, backbone__value__weight)
  rows = poolgraph.Attention<num_heads=2, scale=0.7ATTRIBUTES>(q, k, v, , BIAS, cu_seqlens)
  o = MatMul(rows, backbone__out__weight)
  a = Add(o, x)
  n = LayerNormalization<axis=-1>(a, norm)
  g = MatMul(n, backbone__gate__weight)
  u = MatMul(n, backbone__up__weight)
  h = Mul(g, u)
  d = MatMul(h, backbone__down__weight)
  e = Add(d, n)
  z = LayerNormalization<axis=-1>(e, norm)
  flat = Squeeze(z, zeros)
  starts = Slice(cu_seqlens, zeros, minus_one, zeros, ones)
  ends = Slice(cu_seqlens, ones, far, zeros, ones)
  lasts = Sub(ends, one)
  lasts_flat = Reshape(lasts, minus_one)
  last = Cast<to=7>(lasts_flat)
  POOLED
}}"""
NAMES = ("query", "key", "value", "out", "gate", "up", "down")
FIRST, LAST = "pooled = Gather<axis=0>(flat, starts)", "pooled = Gather<axis=0>(flat, last)"
SECOND = "seconds = Add(starts, ones)  index = Min(seconds, last)  pooled = Gather<axis=0>(flat, index)"
POOLED = {"first": FIRST, "last": LAST, "second": SECOND}
BATCHES = ((3, 1, 4), (1, 1, 1), (5,), (2, 6, 1, 1, 3))


def layer(pooled: str = FIRST, *, attributes: str = "", bias: str = "", inputs: str = "", output: str = "") -> ir.Model:
    """One layer over packed texts and its pooling; the queries are set apart, as the uniform graph decides."""
    text = LAYER.replace("POOLED", pooled).replace("ATTRIBUTES", attributes).replace("INPUTS", inputs)
    text = text.replace("BIAS", bias).replace("OUTPUTS", output and f", {VECTORS} {output}")
    text = text.replace(f", {VECTORS} flat", "") if output else text
    text = text.replace("EXPANDED", "expanded = poolgraph.DistanceBias(distances)" if bias == "expanded" else "")
    weights: dict[str, np.ndarray] = {
        f"backbone__{name}__weight": random(SIZE, SIZE, seed=i) / 2 for i, name in enumerate(NAMES)
    }
    numbers = {"zeros": [0], "ones": [1], "twos": [2], "minus_one": [-1], "one": 1, "zero": 0}
    weights |= {name: np.array(number) for name, number in numbers.items()}
    weights |= {"far": np.array([np.iinfo(np.int64).max]), "norm": np.linspace(0.5, 1.5, SIZE, dtype=np.float32)}
    model = build(text, **{name: array for name, array in weights.items() if re.search(rf"\b{name}\b", text)})
    set_apart(products(model)["query"])
    return model


def products(model: ir.Model) -> dict[str, ir.Node]:
    """The products by the name of their weight."""
    found = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer()]
    return {str(node.inputs[1].name).removeprefix("backbone.").removesuffix(".weight"): node for node in found}


def rows_seen(model: ir.Model, **feeds: np.ndarray) -> dict[str, int]:
    """The rows that each product is computed of, watched as it runs."""
    copy = model.clone()
    found = products(copy)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(node.outputs[0] for node in found.values())
    for value in copy.graph.outputs:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
    return {name: rows.shape[-2] for name, rows in zip(found, run(copy, **feeds), strict=True)}


def feeds_of(lengths: tuple[int, ...], model: ir.Model) -> dict[str, np.ndarray]:
    count = sum(lengths)
    feeds = {"x": random(1, count, SIZE, seed=len(lengths)), "cu_seqlens": np.cumsum([0, *lengths])}
    feeds |= {"bias": random(1, 2, count, count), "distances": random(2, 2 * count - 1)}
    return {str(value.name): feeds[str(value.name)] for value in model.graph.inputs}


def check_numbers(model: ir.Model, changed: ir.Model) -> None:
    """Check the semantic graph and the lowered one against the graph before."""
    lowered = changed.clone()
    lower_attention_to_standard(lowered)
    lower_distance_biases(lowered)
    for lengths in BATCHES:
        feeds = feeds_of(lengths, model)
        expected = run_semantic(model, **feeds)
        assert_close(expected, run_semantic(changed, **feeds))
        assert_close(expected, run(lowered, **feeds))


# --- what it rewrites


WHOLE_TEXT = {
    "bidirectional": ("", POOLED),
    "softcap": (", softcap=1.5", POOLED),
    "causal": (", causal=1", {"last": LAST}),
    "right window": (", right_window=2", {"last": LAST}),
}
CASES = [(attributes, text) for attributes, pooled in WHOLE_TEXT.values() for text in pooled.values()]
CASE_NAMES = [f"{kind}, {name}" for kind, (_, pooled) in WHOLE_TEXT.items() for name in pooled]


@pytest.mark.parametrize(("attributes", "pooled"), CASES, ids=CASE_NAMES)
def test_one_row_a_text(attributes: str, pooled: str) -> None:
    before, model = layer(pooled, attributes=attributes), layer(pooled, attributes=attributes)
    assert push_pooling(model) == 12  # from the query to the pooling, all but the products of keys and values
    assert push_pooling(model) == 0
    (node,) = attention_nodes(model)
    attention = read_attention(node)
    assert attention.has_one_query_a_text
    assert not attention.has_window
    assert [list(value.shape)[1] for value in node.inputs[:3]] == ["batch_size", "num_tokens", "num_tokens"]
    assert [node.outputs[0].name for node in model.graph if "pooled" in [v.name for v in node.outputs]] == ["pooled"]
    check_numbers(before, model)
    lower_attention_to_standard(model)
    seen = rows_seen(model, **feeds_of((3, 1, 4), model))
    assert seen == {**dict.fromkeys(NAMES, 3), "key": 8, "value": 8}


def test_rows_are_taken_once_from_each_value_and_the_pooling_takes_none() -> None:
    model = layer()
    push_pooling(model)
    assert ops(model).count("Gather") == 1  # of x, for the query and for the residual
    assert "Slice" not in [node.op_type for node in model.graph if node.inputs[0].name != "cu_seqlens"]


# --- what it leaves alone


UNSEEN_KEYS = {
    "left window": ({"attributes": ", left_window=2"}, POOLED),
    "both windows": ({"attributes": ", left_window=2, right_window=1"}, POOLED),
    "causal": ({"attributes": ", causal=1"}, {"first": FIRST, "second": SECOND}),
    "right window": ({"attributes": ", right_window=2"}, {"first": FIRST, "second": SECOND}),
    "bias": ({"bias": "bias", "inputs": ", float[1,2,num_tokens,num_tokens] bias"}, POOLED),
    "by distance": ({"bias": "expanded", "inputs": ", float[2,columns] distances"}, POOLED),
}


@pytest.mark.parametrize(("changes", "pooled"), UNSEEN_KEYS.values(), ids=UNSEEN_KEYS)
def test_attention_is_left_whole_where_the_query_does_not_see_its_text(
    changes: dict[str, str], pooled: dict[str, str]
) -> None:
    for text in pooled.values():
        before, model = layer(text, **changes), layer(text, **changes)
        assert push_pooling(model) == 10
        (node,) = attention_nodes(model)
        assert not read_attention(node).has_one_query_a_text
        assert node.attributes == attention_nodes(before)[0].attributes
        check_numbers(before, model)
        lower_attention_to_standard(model)
        lower_distance_biases(model)
        seen = rows_seen(model, **feeds_of((3, 1, 4), model))
        assert seen == {**dict.fromkeys(NAMES, 3), "query": 8, "key": 8, "value": 8}


ALMOST_LAST = {
    "before the text": "other = Sub(starts, one)",
    "the next text's": "other = Identity(ends)",
    "nothing subtracted": "other = Sub(ends, zero)",
    "from the first bound": "s = Slice(cu_seqlens, zeros, far, zeros, ones)  other = Sub(s, one)",
    "without the last bound": "s = Slice(cu_seqlens, ones, minus_one, zeros, ones)  other = Sub(s, one)",
    "every second": "s = Slice(cu_seqlens, ones, far, zeros, twos)  other = Sub(s, one)",
    "other bounds": "s = Slice(others, ones, far, zeros, ones)  other = Sub(s, one)",
}


@pytest.mark.parametrize("place", ALMOST_LAST.values(), ids=ALMOST_LAST)
def test_only_the_last_row_sees_all_of_a_causal_text(place: str) -> None:
    pooled = f"{place}  place = Cast<to=7>(other)  pooled = Gather<axis=0>(flat, place)"
    inputs = ", int64[bounds] others" if "others" in place else ""
    model = layer(pooled, attributes=", causal=1", inputs=inputs)
    assert push_pooling(model) == 10
    assert not read_attention(attention_nodes(model)[0]).has_one_query_a_text


DECLINED = {
    "sum": "m = Cast<to=1>(members)  pooled = MatMul(m, flat)",
    "two rows": "head = Gather<axis=0>(flat, starts)  end = Gather<axis=0>(flat, last)  pooled = Add(head, end)",
    "another reader": "w = ReduceSum(flat, zeros)  t = Gather<axis=0>(flat, starts)  pooled = Add(t, w)",
    "rows mixed": "w = CumSum(flat, zero)  pooled = Gather<axis=0>(w, starts)",
    "another axis": "pooled = Gather<axis=1>(flat, starts)",
    "one row": "one_row = Gather<axis=0>(flat, zero)  m = Cast<to=1>(starts)  c = Unsqueeze(m, ones)  "
    "pooled = Add(c, one_row)",
    "rows that choose": "s = ReduceMax<keepdims=0>(flat, ones)  i = Cast<to=7>(s)  j = Clip(i, zero, zero)  "
    "f = Gather<axis=0>(j, starts)  pooled = Gather<axis=0>(flat, f)",
}


@pytest.mark.parametrize("pooled", DECLINED.values(), ids=DECLINED)
def test_declines(pooled: str) -> None:
    model = layer(pooled, inputs=", bool[batch_size,num_tokens] members" if "members" in pooled else "")
    before = ir.to_proto(model).SerializeToString()
    assert push_pooling(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_declines_where_the_rows_are_an_answer_too() -> None:
    assert push_pooling(layer(output="flat")) == 0


def test_numbers_a_token_are_taken_as_they_are() -> None:
    """As where RoBERTa counts its positions: there are no rows of features."""
    more = "t = Abs(counts)  number = Gather<axis=0>(t, starts)  c = Unsqueeze(number, ones)"
    model = layer(
        f"{more}  end = Gather<axis=0>(flat, starts)  pooled = Add(c, end)", inputs=", float[num_tokens] counts"
    )
    assert push_pooling(model) == 12


# --- weights that graphs share


@pytest.mark.parametrize("attributes", ["", ", left_window=2"])
def test_packed_graphs_decide_nothing_about_weights(attributes: str) -> None:
    model = layer(attributes=attributes)
    products(model)["query"].metadata_props.clear()
    before = ir.to_proto(model).SerializeToString()
    assert note_row_products(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(("other", "apart", "narrowed"), [("first", (), 4), ("last", (), 0), ("last", ("a",), 4)])
def test_products_of_a_group_are_computed_of_the_same_rows(other: str, apart: tuple[str, ...], narrowed: int) -> None:
    text = f"""g ({ROWS} x, int64[batch_size] first, int64[batch_size] last) => (float[batch_size,8] pooled)
    <{ROWS} a, {ROWS} b, {VECTORS} c, {VECTORS} d, float[batch_size,8] head, float[batch_size,8] end> {{
    a = MatMul(x, backbone__a)  c = Squeeze(a, zeros)  head = Gather<axis=0>(c, first)
    b = MatMul(x, backbone__b)  d = Squeeze(b, zeros)  end = Gather<axis=0>(d, {other})  pooled = Add(head, end) }}"""
    weights = {"backbone__a": random(SIZE, SIZE), "backbone__b": random(SIZE, SIZE, seed=1)}
    model = build(text, **weights, zeros=np.array([0]))
    for name in apart:
        set_apart(products(model)[name])
    assert push_pooling(model) == narrowed


@pytest.mark.parametrize("apart", [True, False])
def test_products_stay_in_their_groups(apart: bool) -> None:
    """Queries that the uniform graph did not set apart stay beside keys and values; gate and up go together."""
    before, model = layer(SECOND), layer(SECOND)
    for one in (before, model):
        if not apart:
            products(one)["query"].metadata_props.clear()
    names = [group.name for group in find_products(model)]
    push_pooling(model)
    assert sorted(group.name for group in find_products(model)) == sorted(names)
    assert "backbone.gate.weight+backbone.up.weight" in names
    check_numbers(before, model)
    assert read_attention(attention_nodes(model)[0]).has_one_query_a_text
    lower_attention_to_standard(model)
    seen = rows_seen(model, **feeds_of((3, 1, 4), model))
    assert seen == {**dict.fromkeys(NAMES, 3), "query": 3 if apart else 8, "key": 8, "value": 8}


# --- checkpoints


LENGTHS = ((1, 2, 7, 33), (33, 7, 2, 1), (40,), (1, 1, 1), (12, 1, 64, 5, 5, 2))
TOLERANCE = 1e-5
"""Of the largest number."""

CLS, END = {"pooling_mode_cls_token": True}, {"pooling_mode_lasttoken": True}
GLOBAL_LAST = {"layer_types": ["sliding_attention", "full_attention"]}
LOCAL_LAST = {"layer_types": ["full_attention", "sliding_attention"]}

PUSHED = replace(PACKED_FP32, sequence_passes=(push_pooling,))

Save = Callable[[Path], object]


def embedder(name: str, pooling: Mapping[str, bool], **changes: Any) -> Save:
    def save(folder: Path) -> None:
        save_model(folder, name, name, num_layers=2, **changes)
        save_head(folder, HeadSpec(pooling=pooling), 32)

    return save


def classifier(name: str, kind: str, **changes: Any) -> Save:
    return lambda folder: save_model(folder, name, kind, num_layers=2, num_labels=3, **changes)


def nomic(pooling: Mapping[str, bool]) -> Save:
    return lambda folder: replace(publish_nomic(), head=HeadSpec(pooling=pooling)).save(folder)


# Beside each, the products of its two layers that are computed of one row a text: merged projections stay whole, and
# so do queries that the uniform graph, which does not know where a prompt ends, has not set apart.
CHECKPOINTS: Mapping[str, tuple[Save, int]] = {
    "BERT, CLS": (embedder("BertModel", CLS), 4),
    "BERT, LAST": (embedder("BertModel", END), 4),
    "BERT, CLS without the prompt": (embedder("BertModel", {**CLS, "include_prompt": False}), 3),
    "RoBERTa, CLS": (embedder("RobertaModel", CLS), 4),
    "RoBERTa, LAST": (embedder("RobertaModel", END), 4),
    "ModernBERT, CLS": (embedder("ModernBertModel", CLS, **GLOBAL_LAST), 3),
    "ModernBERT, CLS, windows at the end": (embedder("ModernBertModel", CLS, **LOCAL_LAST), 3),
    "Nomic, CLS": (nomic(CLS), 5),
    "Nomic, CLS without the prompt": (nomic({**CLS, "include_prompt": False}), 4),
    "BERT, classifier": (classifier("BertModel", "BertForSequenceClassification"), 4),
    "ModernBERT, classifier": (
        classifier("ModernBertModel", "ModernBertForSequenceClassification", classifier_pooling="cls", **GLOBAL_LAST),
        3,
    ),
}


def groups_of(traced: Traced, *passes: Pass) -> list[str]:
    """The names of products that are quantized together, which those of the uniform graph are."""
    model = select_family(traced.model, "sequence", finished=False)
    assert model is not None
    run_passes(model, passes)
    return sorted(group.name for group in find_products(model))


IN_CI = (
    *("BERT, LAST", "BERT, CLS without the prompt", "RoBERTa, CLS", "ModernBERT, CLS, windows at the end"),
    *("Nomic, CLS without the prompt", "BERT, classifier"),
)
"""Those that every run of the tests has; POOLGRAPH_ALL_ROWS asks for all."""

CHOSEN = {name: case for name, case in CHECKPOINTS.items() if os.environ.get("POOLGRAPH_ALL_ROWS") or name in IN_CI}


@pytest.mark.slow
@pytest.mark.usefixtures("one_trace_each")
@pytest.mark.parametrize(("save", "narrowed"), CHOSEN.values(), ids=CHOSEN)
def test_answers_of_checkpoints(save: Save, narrowed: int, tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    traced = trace_packed(tmp_path / "checkpoint", follows_uniform=True)
    assert groups_of(traced, push_pooling) == groups_of(traced)
    whole = PackedGraph(traced, tmp_path / "whole")
    graph = PackedGraph(traced, tmp_path / "pushed", target=PUSHED)
    source = np.random.default_rng(1)
    for lengths in LENGTHS:
        texts = [{"input_ids": source.integers(FIRST_WORD, 300, (1, length))} for length in lengths]
        for text, length in zip(texts, lengths, strict=True):
            more = {"token_type_ids": np.arange(length)[None] % 2, "prompt_length": np.array([[length // 2]])}
            text |= {name: rows for name, rows in more.items() if name in graph.inputs}
        expected, found = np.stack(whole.run(texts)), np.stack(graph.run(texts))
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
        alone = np.stack([graph.run([text])[0] for text in texts])
        assert np.abs(found - alone).max() <= TOLERANCE * np.abs(expected).max()
    texts = [{name: rows[0] for name, rows in text.items()} for text in texts]
    feeds = {name: np.concatenate([text[name] for text in texts]) for name in texts[0]}
    model = ir.external_data.load_to_model(ir.load(graph.file))
    seen = rows_seen(model, **feeds, cu_seqlens=np.cumsum([0, *lengths]))
    assert sorted(seen.values())[:narrowed] == [len(lengths)] * narrowed, seen
    assert set(sorted(seen.values())[narrowed:]) == {sum(lengths)}, seen
