"""Query, key and value projections of one layer become one matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import SEMANTIC_DOMAIN, add_constant, dimensions, is_initializer, producer, used_once
from poolgraph.graphs.products import is_apart

_Merged = dict[tuple[ir.Value, ...], ir.Value]


@dataclass(frozen=True, slots=True)
class _Projection:
    """``source @ weight + bias``; ``bias`` is None where there is none."""

    product: ir.Node
    source: ir.Value
    weight: ir.Value
    bias: ir.Value | None


def merge_projections(model: ir.Model) -> int:
    """Merge the three projections right in front of each semantic attention; their widths may differ.

    Projections with a norm or rotary positions behind them, as in most decoders, stay apart: no kernel takes them
    merged, and one wide product with a split takes as long as three products (ONNX Runtime 1.31.1, one thread, 1,024 to
    2,048 and two of 1,024, 896 to 896 and two of 128, 8 to 1,024 tokens: within the noise). So do key and value where
    the query's is set apart.

    Given:   %q = Add(MatMul(%x, %Wq), %bq);  %k = ...;  %v = ...;  %y = poolgraph::Attention(%q, %k, %v, ...)
    Result:  %q, %k, %v = Split(Add(MatMul(%x, [Wq|Wk|Wv]), [bq|bk|bv]));  %y = poolgraph::Attention(%q, %k, %v, ...)
    """
    graph = model.graph
    attentions = [node for node in graph if (node.domain, node.op_type) == (SEMANTIC_DOMAIN, "Attention")]
    merged: _Merged = {}
    return sum(_merge(graph, node, merged) for node in attentions)


def _merge(graph: ir.Graph, node: ir.Node, merged: _Merged) -> int:
    projections = [_match_projection(value) for value in node.inputs[:3]]
    found = [p for p in projections if p is not None]
    if len(found) < 3 or len({id(p.source) for p in found}) > 1 or len({p.bias is None for p in found}) > 1:
        return 0
    if any(is_apart(p.product) for p in found):
        return 0
    first = node.inputs[0]
    assert first is not None
    anchor = first.producer()
    assert anchor is not None
    parts = _build_merged(graph, found, merged)
    graph.insert_before(anchor, parts)
    for old, new in zip(node.inputs[:3], parts[-1].outputs, strict=True):
        assert old is not None
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new)
    return 1


def _match_projection(value: ir.Value | None) -> _Projection | None:
    if value is None or not used_once(value):
        return None
    add = producer(value, "Add")
    bias = add.inputs[1] if add is not None else None
    product = producer(add.inputs[0] if add is not None else value, "MatMul")
    if product is None or not is_initializer(product.inputs[1]) or (bias is not None and not is_initializer(bias)):
        return None
    source, weight = product.inputs
    assert source is not None
    assert weight is not None
    sizes = dimensions(weight) or ()
    if len(sizes) != 2 or (bias is not None and dimensions(bias) != sizes[1:]):
        return None
    return _Projection(product, source, weight, bias)


def _build_merged(graph: ir.Graph, projections: Sequence[_Projection], merged: _Merged) -> list[ir.Node]:
    weights = [p.weight for p in projections]
    sizes = [int(dimensions(weight)[1]) for weight in weights]  # type: ignore[index]
    nodes = [ir.node("MatMul", [projections[0].source, _concatenated(graph, weights, 1, merged)])]
    biases = [p.bias for p in projections if p.bias is not None]
    if biases:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], _concatenated(graph, biases, 0, merged)]))
    split = add_constant(graph, "split_" + "_".join(map(str, sizes)), np.array(sizes, dtype=np.int64))
    nodes.append(ir.node("Split", [nodes[-1].outputs[0], split], {"axis": -1}, num_outputs=3))
    return nodes


def _concatenated(graph: ir.Graph, values: Sequence[ir.Value], axis: int, merged: _Merged) -> ir.Value:
    """Return an initializer of the values side by side, one for all layers that share them, as ALBERT's do."""
    key = tuple(values)
    if key not in merged:
        merged[key] = _concatenate(graph, values, axis)
    return merged[key]


def _concatenate(graph: ir.Graph, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """Register an initializer of the values side by side; they are read only when it is written."""
    name = _merged_name([str(value.name) for value in values])
    tensors = [value.const_value for value in values]
    shape = list(dimensions(values[0]) or ())
    shape[axis] = sum(int((dimensions(value) or ())[axis]) for value in values)
    dtype = values[0].dtype
    assert dtype is not None
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([t.numpy() for t in tensors if t is not None], axis=axis), name=name),
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
    )
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def _merged_name(names: Sequence[str]) -> str:
    """Return the name that three have in common, ``query_key_value`` where they differ; all three where nothing is."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) > 1 or len(parts[0]) == 1:
        return "+".join(names)
    return ".".join(same[0] if len(set(same)) == 1 else "query_key_value" for same in zip(*parts, strict=True))
