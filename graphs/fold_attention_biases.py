"""Passes: biases of attention's key and value projections that need no pass over the rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.attention_node import AttentionNode, attention_nodes, read_attention
from poolgraph.graphs.pattern import add_lazy_weight, dimensions, is_initializer, producer, used_once

KEY = 1
VALUE = 2
"""Places among the inputs of attention."""


def drop_key_biases(model: ir.Model) -> int:
    """Drop the bias of a key projection right in front of attention.

    It adds ``q . b`` to all scores of a query, and the softmax of scores does not change by what all of them share. A
    sink would not share it.

    Given:   %y = poolgraph::Attention(%q, Add(MatMul(%x, %W), %b), %v)
    Result:  %y = poolgraph::Attention(%q, MatMul(%x, %W), %v)
    """
    rewrites = 0
    for node in attention_nodes(model):
        add, attention = _biased_product(node.inputs[KEY]), read_attention(node)
        if add is not None and attention.sinks is None and not attention.softcap:
            node.replace_input_with(KEY, add.inputs[0])
            rewrites += 1
    return rewrites


def fold_value_biases(model: ir.Model) -> int:
    """Move the bias of a value projection behind attention, into the bias of the output projection.

    The weights of a query's keys add up to 1 where there are no sinks, so attention over ``v + b`` is attention over
    ``v``, plus ``b``.

    Given:   %y = Add(MatMul(poolgraph::Attention(%q, %k, Add(MatMul(%x, %W), %b)), %Wo), %bo)
    Result:  %y = Add(MatMul(poolgraph::Attention(%q, %k, MatMul(%x, %W)), %Wo), %bo + %b @ %Wo)
    """
    rewrites = 0
    for node in attention_nodes(model):
        add, output, attention = _biased_product(node.inputs[VALUE]), _output_bias(node), read_attention(node)
        if add is None or output is None or attention.sinks is not None:
            continue
        output.replace_input_with(1, _folded(model.graph, attention, add.inputs[1], output))
        node.replace_input_with(VALUE, add.inputs[0])
        rewrites += 1
    return rewrites


def _biased_product(value: ir.Value | None) -> ir.Node | None:
    """Return the Add of a product and a stored bias that attention alone reads."""
    add = producer(value, "Add") if value is not None and used_once(value) else None
    if add is None or producer(add.inputs[0], "MatMul") is None or not is_initializer(add.inputs[1]):
        return None
    return add if len(dimensions(add.inputs[1]) or ()) == 1 else None


def _output_bias(attention: ir.Node) -> ir.Node | None:
    """Return the Add behind the output projection, the only reader of an attention."""
    product = _only_reader(attention.outputs[0], "MatMul")
    if product is None or product.inputs[0] is not attention.outputs[0] or not is_initializer(product.inputs[1]):
        return None
    add = _only_reader(product.outputs[0], "Add")
    return add if add is not None and is_initializer(add.inputs[1]) else None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    if not used_once(value):
        return None
    node = next(iter(value.uses())).node
    return node if (node.domain, node.op_type) == ("", op_type) else None


def _folded(graph: ir.Graph, attention: AttentionNode, bias: ir.Value | None, output: ir.Node) -> ir.Value:
    product = producer(output.inputs[0], "MatMul")
    assert product is not None
    tensors = [value.const_value for value in (bias, product.inputs[1], output.inputs[1]) if value is not None]
    value_bias, weight, old = (tensor for tensor in tensors if tensor is not None)

    def load() -> np.ndarray:
        heads = value_bias.numpy().reshape(attention.num_kv_heads, attention.head_dim).astype(np.float64)
        rows = heads.repeat(attention.group_size, axis=0).reshape(-1)
        return (old.numpy() + rows @ weight.numpy().astype(np.float64)).astype(np.float32)

    before = output.inputs[1]
    assert before is not None
    assert before.dtype is not None
    shape = tuple(int(size) for size in dimensions(before) or ())
    # Of all three: layers may share one of them and not the others.
    names = ".".join(str(value.name) for value in (bias, product.inputs[1]) if value is not None)
    return add_lazy_weight(graph, f"{before.name}.with.{names}", before.dtype, shape, load)
