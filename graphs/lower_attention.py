"""Semantic attention to what a target runs: standard operators, or ONNX Runtime's CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.errors import ExportError
from poolgraph.graphs.merge_projections import SEMANTIC_DOMAIN
from poolgraph.graphs.pattern import add_constant, dimensions, is_initializer, producer, replace_node, used_once

CONTRIB_DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class _Attention:
    """A semantic attention node, its inputs by name."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    bias: ir.Value | None
    num_heads: int
    scale: float
    hidden_size: int


def lower_attention_to_standard(model: ir.Model) -> int:
    """Lower attention to standard operators.

    Given:   %y = poolgraph::Attention(%q, %k, %v, %mask, %bias)
    Result:  %s = MatMul(heads(%q) * scale, heads(%k) transposed) + %bias + (mask ? 0 : lowest);
             %y = merge(MatMul(Softmax(%s), heads(%v)))
    """
    nodes = _semantic_nodes(model)
    for node in nodes:
        _lower_standard(model.graph, _read(node))
    return len(nodes)


def lower_attention_to_cpu(model: ir.Model) -> int:
    """Lower attention to ONNX Runtime's CPU kernels; batches are uniform, so there is no mask.

    Given:   %q, %k, %v = Split(Add(MatMul(%x, %W), %b));  %y = poolgraph::Attention(%q, %k, %v)
    Result:  %y = com.microsoft::Attention(%x, %W, %b)

    Without such a projection the result is com.microsoft::MultiHeadAttention(%q, %k, %v); with a bias, standard
    operators, because the kernel with a bias is the slower of the two.
    """
    nodes = _semantic_nodes(model)
    for node in nodes:
        attention = _read(node)  # only now: its inputs may come from the attention just lowered
        if attention.mask is not None:
            raise ExportError("the cpu target runs uniform batches, but this graph's attention has a mask")
        if attention.bias is not None:
            _lower_standard(model.graph, attention)
        else:
            _lower_cpu(model, attention)
    return len(nodes)


def _semantic_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == (SEMANTIC_DOMAIN, "Attention")]


def _read(node: ir.Node) -> _Attention:
    query, key, value, mask, bias = (*node.inputs, None, None)[:5]
    axes = dimensions(query)
    assert query is not None
    assert key is not None
    assert value is not None
    assert axes is not None
    return _Attention(
        node=node,
        query=query,
        key=key,
        value=value,
        mask=mask,
        bias=bias,
        num_heads=node.attributes["num_heads"].as_int(),
        scale=node.attributes["scale"].as_float(),
        hidden_size=int(axes[-1]),
    )


def _lower_standard(graph: ir.Graph, attention: _Attention) -> None:
    tape = Tape()
    head_dim = attention.hidden_size // attention.num_heads
    split = add_constant(
        graph,
        f"heads_{attention.num_heads}_{head_dim}",
        np.array([0, 0, attention.num_heads, head_dim], dtype=np.int64),
    )
    merge = add_constant(
        graph, f"merge_{attention.hidden_size}", np.array([0, 0, attention.hidden_size], dtype=np.int64)
    )
    scale = add_constant(graph, f"scale_{head_dim}_{attention.scale:.9g}", np.array(attention.scale, dtype=np.float32))

    def heads(rows: ir.Value, perm: list[int]) -> ir.Value:
        return tape.op("Transpose", [tape.op("Reshape", [rows, split])], {"perm": perm})

    query = tape.op("Mul", [heads(attention.query, [0, 2, 1, 3]), scale])
    scores = tape.op("MatMul", [query, heads(attention.key, [0, 2, 3, 1])])
    if attention.bias is not None:
        scores = tape.op("Add", [scores, attention.bias])
    if attention.mask is not None:
        scores = tape.op("Add", [scores, _additive_mask(graph, tape, attention.mask)])
    rows = tape.op("MatMul", [tape.op("Softmax", [scores], {"axis": -1}), heads(attention.value, [0, 2, 1, 3])])
    result = tape.op("Reshape", [tape.op("Transpose", [rows], {"perm": [0, 2, 1, 3]}), merge])
    replace_node(graph, attention.node, tape.nodes, result)


def _additive_mask(graph: ir.Graph, tape: Tape, mask: ir.Value) -> ir.Value:
    """Return 0 for tokens and the lowest float for padding, (batch_size, 1, 1, sequence_length)."""
    zero = add_constant(graph, "mask_keep", np.array(0, dtype=np.float32))
    lowest = add_constant(graph, "mask_drop", np.array(np.finfo(np.float32).min, dtype=np.float32))
    axes = add_constant(graph, "mask_axes", np.array([1, 2], dtype=np.int64))
    return tape.op("Where", [tape.op("Unsqueeze", [mask, axes]), zero, lowest])


def _lower_cpu(model: ir.Model, attention: _Attention) -> None:
    tape = Tape()
    model.graph.opset_imports[CONTRIB_DOMAIN] = 1
    attributes: dict[str, int | float] = {"num_heads": attention.num_heads, "scale": attention.scale}
    projection = _match_merged(attention)
    if projection is None:
        inputs: list[ir.Value | None] = [attention.query, attention.key, attention.value]
        result = tape.op("MultiHeadAttention", inputs, attributes, domain=CONTRIB_DOMAIN)
    else:
        result = tape.op("Attention", list(projection), attributes, domain=CONTRIB_DOMAIN)
    replace_node(model.graph, attention.node, tape.nodes, result)


def _match_merged(attention: _Attention) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return source, weight and bias of a merged projection that feeds this attention alone."""
    split = producer(attention.query, "Split")
    rows = (attention.query, attention.key, attention.value)
    if split is None or tuple(split.outputs) != rows or not all(used_once(value) for value in rows):
        return None
    add = producer(split.inputs[0], "Add")
    product = producer(add.inputs[0], "MatMul") if add is not None else None
    if add is None or product is None or len({dimensions(value) for value in rows}) > 1:
        return None
    source, weight, bias = product.inputs[0], product.inputs[1], add.inputs[1]
    if source is None or weight is None or bias is None or not (is_initializer(weight) and is_initializer(bias)):
        return None
    return source, weight, bias
