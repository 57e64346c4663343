"""Pass: the residual sum in front of a norm, and the bias of the product before it, become part of the norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from poolgraph.graphs.pattern import CONTRIB_DOMAIN, dimensions, is_initializer, producer, stand_in, used_once

FUSED: Mapping[str, str] = MappingProxyType(
    {
        "LayerNormalization": "SkipLayerNormalization",
        "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    }
)
"""Norms and ONNX Runtime's operators for them with a residual."""

SUM = 3
"""Output of the fused operators that holds the sum."""


@dataclass(frozen=True, slots=True)
class _Sum:
    """``rows + skip (+ bias)``."""

    node: ir.Node
    rows: ir.Value
    skip: ir.Value
    bias: ir.Value | None


def fuse_skip_norms(model: ir.Model) -> int:
    """Fuse residual sums into norms: one pass over the rows instead of three, on a GPU.

    Given:   %s = Add(Add(%x, %b), %r);  %y = LayerNormalization(%s, %gamma, %beta)
    Result:  %y, , , %s = com.microsoft::SkipLayerNormalization(%x, %r, %gamma, %beta, %b)

    The same of SimplifiedLayerNormalization, which has no beta.
    """
    graph, rewrites = model.graph, 0
    for node in list(graph):
        found = _match(node)
        if found is not None:
            graph.opset_imports[CONTRIB_DOMAIN] = 1
            _fuse(graph, node, found)
            rewrites += 1
    return rewrites


def _match(norm: ir.Node) -> _Sum | None:
    # What is fused stands in the place of the sum, where weights that are computed may not yet be.
    if norm.domain or norm.op_type not in FUSED or not all(is_initializer(value) for value in norm.inputs[1:] if value):
        return None
    add = producer(norm.inputs[0], "Add")
    shapes = [dimensions(value) for value in (norm.inputs[0], *(add.inputs if add is not None else ()))]
    if (
        add is None
        or shapes[0] is None
        or len(shapes[0]) != 3
        or any(shape not in (shapes[0], None) for shape in shapes)
        or dimensions(norm.inputs[1]) != shapes[0][-1:]
    ):
        return None
    if any(is_initializer(value) for value in add.inputs) or add.outputs[0].is_graph_output():
        return None
    for rows, skip in (add.inputs, tuple(reversed(add.inputs))):
        biased = producer(rows, "Add")
        if biased is not None and used_once(biased.outputs[0]) and _is_bias(biased.inputs[1], shapes[0][-1]):
            assert biased.inputs[0] is not None
            assert skip is not None
            return _Sum(add, biased.inputs[0], skip, biased.inputs[1])
    rows, skip = add.inputs
    assert rows is not None
    assert skip is not None
    return _Sum(add, rows, skip, None)


def _is_bias(value: ir.Value | None, size: int | str) -> bool:
    return is_initializer(value) and dimensions(value) == (size,)


def _fuse(graph: ir.Graph, norm: ir.Node, found: _Sum) -> None:
    has_beta = norm.op_type == "LayerNormalization"
    beta = norm.inputs[2] if len(norm.inputs) > 2 else None
    inputs = [found.rows, found.skip, norm.inputs[1], *([beta] if has_beta else []), found.bias]
    while inputs[-1] is None:
        inputs.pop()
    total = found.node.outputs[0]
    is_read = len(total.uses()) > 1
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    fused = ir.node(
        FUSED[norm.op_type],
        inputs,
        {"epsilon": epsilon},
        domain=CONTRIB_DOMAIN,
        num_outputs=SUM + 1 if is_read else 1,
    )
    pairs = [(norm.outputs[0], fused.outputs[0])]
    if is_read:
        for unused in fused.outputs[1:SUM]:
            unused.name = ""
        pairs.append((total, fused.outputs[SUM]))
    # In the place of the sum: what else reads it may come before the norm.
    graph.insert_after(found.node, fused)
    for old, new in pairs:
        stand_in(new, old)
    graph.remove(norm, safe=True)
    graph.remove(found.node, safe=True)
