"""Pass: a product whose columns are taken apart becomes a product a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import (
    add_integers,
    add_lazy_weight,
    dimensions,
    is_initializer,
    producer,
    scalar_of,
    stand_in,
    used_once,
)

_PART_AXIS = 2
"""Where Wqkv checkpoints have their axis of three: (batch_size, sequence_length, 3, num_heads, head_dim)."""


@dataclass(frozen=True, slots=True)
class _Product:
    """``source @ weight + bias``; ``bias`` is None where there is none."""

    source: ir.Value
    weight: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True, slots=True)
class _Part:
    """Columns of a product and the value that holds them; ``tail`` is its shape behind the first two axes."""

    start: int
    stop: int
    value: ir.Value
    tail: tuple[int, ...]


def split_projections(model: ir.Model) -> int:
    """Compute the parts of a merged product by products of their own.

    On a GPU, taking a product apart is a copy of all its rows; attention kernels take query, key and value as three.
    Weights are cut lazily.

    Given:   %q, %k, %v = Split(Add(MatMul(%x, %W), %b), %sizes)
    Result:  %q = Add(MatMul(%x, %W[:, :size]), %b[:size]);  %k = ...;  %v = ...

    Given:   %r = Reshape(MatMul(%x, %W), [0, 0, 3, num_heads, head_dim]);  %q = Squeeze(Slice(%r, 0, 1), 2);  ...
    Result:  %q = Reshape(MatMul(%x, %W[:, :size]), [0, 0, num_heads, head_dim]);  ...
    """
    graph, rewrites = model.graph, 0
    for node in list(graph):
        parts = _split_parts(node) or _unbound_parts(node)
        product = _match_product(node.inputs[0]) if parts else None
        if product is None or any(part.value.is_graph_output() for part in parts):
            continue
        for part in parts:
            _replace(graph, node, product, part)
        rewrites += 1
    return rewrites


def _split_parts(node: ir.Node) -> list[_Part]:
    if (node.domain, node.op_type) != ("", "Split"):
        return []
    rows, sizes = dimensions(node.inputs[0]), [(dimensions(value) or (None,))[-1] for value in node.outputs]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if not all(isinstance(size, int) for size in sizes) or (axis != -1 and (rows is None or axis != len(rows) - 1)):
        return []
    bounds = np.cumsum([0, *sizes])
    return [
        _Part(int(start), int(stop), value, (int(stop - start),))
        for (start, stop), value in zip(pairwise(bounds), node.outputs, strict=True)
    ]


def _unbound_parts(node: ir.Node) -> list[_Part]:
    """Return the parts of a Reshape whose only readers take one index of its third axis each."""
    shape = dimensions(node.outputs[0]) or ()
    if (node.domain, node.op_type) != ("", "Reshape") or len(shape) <= _PART_AXIS + 1:
        return []
    tail = shape[_PART_AXIS:]
    if not all(isinstance(size, int) for size in tail):
        return []
    sizes = tuple(int(size) for size in tail[1:])
    parts = [_unbound_part(use.node, sizes) for use in node.outputs[0].uses()]
    return [part for part in parts if part is not None] if None not in parts else []


def _unbound_part(node: ir.Node, sizes: tuple[int, ...]) -> _Part | None:
    if node.op_type != "Slice" or not used_once(node.outputs[0]):
        return None
    start, stop, axis = (scalar_of(value) for value in node.inputs[1:4])
    squeeze = next(iter(node.outputs[0].uses())).node
    rank = len(sizes) + _PART_AXIS + 1
    if (
        start is None
        or stop != start + 1
        or axis not in (_PART_AXIS, _PART_AXIS - rank)
        or squeeze.op_type != "Squeeze"
    ):
        return None
    width = int(np.prod(sizes))
    return _Part(int(start) * width, (int(start) + 1) * width, squeeze.outputs[0], sizes)


def _match_product(value: ir.Value | None) -> _Product | None:
    if value is None or not used_once(value):
        return None
    add = producer(value, "Add")
    product = producer(value if add is None else add.inputs[0], "MatMul")
    bias = None if add is None else add.inputs[1]
    if product is None or not is_initializer(product.inputs[1]) or not used_once(product.outputs[0]):
        return None
    source, weight = product.inputs
    if source is None or weight is None or len(dimensions(weight) or ()) != 2:
        return None
    if bias is not None and (not is_initializer(bias) or len(dimensions(bias) or ()) != 1):
        return None
    return _Product(source, weight, bias)


def _replace(graph: ir.Graph, anchor: ir.Node, product: _Product, part: _Part) -> None:
    nodes = [ir.node("MatMul", [product.source, _columns(graph, product.weight, part)])]
    if product.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], _columns(graph, product.bias, part)]))
    leading = list(dimensions(product.source) or ())[:-1]
    for node in nodes:
        node.outputs[0].shape = ir.Shape([*leading, part.stop - part.start])
        node.outputs[0].type = part.value.type
    if len(part.tail) > 1:
        shape = add_integers(graph, [0, 0, *part.tail])
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], shape]))
    for index, node in enumerate(nodes[:-1]):
        node.outputs[0].name = f"{part.value.name}.step_{index}"
    graph.insert_before(anchor, nodes)
    stand_in(nodes[-1].outputs[0], part.value)


def _columns(graph: ir.Graph, whole: ir.Value, part: _Part) -> ir.Value:
    """Return the part's columns of a weight (in_features, out_features) or bias (out_features,)."""
    tensor, dtype = whole.const_value, whole.dtype
    assert tensor is not None
    assert dtype is not None
    sizes: Sequence[int] = [int(size) for size in dimensions(whole) or ()]
    name = f"{whole.name}.columns_{part.start}_{part.stop}"
    shape = (*sizes[:-1], part.stop - part.start)
    return add_lazy_weight(graph, name, dtype, shape, lambda: tensor.numpy()[..., part.start : part.stop])
