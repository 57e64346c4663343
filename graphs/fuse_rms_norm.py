"""Pass: root mean square norms, which the tracer spells out, become one operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import dimensions, producer, replace_node, scalar_of, used_once


def fuse_rms_norm(model: ir.Model) -> int:
    """Fuse RMSNorm (arXiv 1910.07467) with its weight into ONNX Runtime's SimplifiedLayerNormalization.

    Given:   %r = Reciprocal(Sqrt(Add(ReduceMean(Pow(%x, 2)), epsilon)));  %y = Mul(Mul(%x, %r), %weight)
    Result:  %y = SimplifiedLayerNormalization(%x, %weight)
    """
    reciprocals = [node for node in model.graph if (node.domain, node.op_type) == ("", "Reciprocal")]
    return sum(_fuse(model.graph, node) for node in reciprocals)


def _fuse(graph: ir.Graph, reciprocal: ir.Node) -> int:
    found = _match_statistics(reciprocal)
    if found is None or not used_once(reciprocal.outputs[0]):
        return 0
    rows, epsilon = found
    (use,) = reciprocal.outputs[0].uses()
    scaled = use.node
    if not _is_product(scaled) or rows not in scaled.inputs or not used_once(scaled.outputs[0]):
        return 0
    (use,) = scaled.outputs[0].uses()
    last = use.node
    weights = [value for value in last.inputs if value is not scaled.outputs[0]]
    size = (dimensions(rows) or (None,))[-1]
    if not _is_product(last) or len(weights) != 1 or dimensions(weights[0]) != (size,):
        return 0
    fused = ir.node(
        "SimplifiedLayerNormalization", [rows, weights[0]], {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    )
    replace_node(graph, last, [fused], fused.outputs[0])
    return 1


def _match_statistics(reciprocal: ir.Node) -> tuple[ir.Value, float] | None:
    """Return the rows and epsilon of ``1 / sqrt(mean(rows ** 2) + epsilon)``."""
    root = producer(reciprocal.inputs[0], "Sqrt")
    add = producer(root.inputs[0], "Add") if root is not None else None
    mean = producer(add.inputs[0], "ReduceMean") if add is not None else None
    power = producer(mean.inputs[0], "Pow") if mean is not None else None
    if add is None or mean is None or power is None or scalar_of(power.inputs[1]) != 2.0:
        return None
    if len(mean.inputs) != 2 or ("keepdims" in mean.attributes and mean.attributes["keepdims"].as_int() != 1):
        return None
    axes, epsilon, rows = _numbers(mean.inputs[1]), scalar_of(add.inputs[1]), power.inputs[0]
    if (
        rows is None
        or epsilon is None
        or axes is None
        or axes.tolist() not in ([-1], [len(dimensions(rows) or ()) - 1])
    ):
        return None
    return rows, epsilon


def _is_product(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Mul")


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None
