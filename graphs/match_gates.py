"""What is done to a product's columns: activations, and gates by which some of the columns multiply the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.native import Activation, Gate
from poolgraph.graphs.pattern import dimensions, producer, scalar_of, used_once


@dataclass(frozen=True, slots=True)
class Finished:
    """What is made of a product's columns.

    Attributes:
        attributes: Of the product that makes it: its activation, and where it is gated its gate.
        nodes: Those that make it so far, the last one first.
    """

    attributes: Mapping[str, int | float]
    nodes: list[ir.Node]

    @property
    def value(self) -> ir.Value:
        """Return the answer."""
        return self.nodes[0].outputs[0]


@dataclass(frozen=True, slots=True)
class _Halves:
    """The columns under the activation, those that they multiply, and the nodes that part them."""

    gate: Gate
    active: ir.Value
    other: ir.Value
    nodes: list[ir.Node]


def match_activation(value: ir.Value) -> Finished | None:
    """Match an activation that is all that is done to ``value``."""
    nodes = [use.node for use in value.uses()]
    if value.is_graph_output():
        return None
    if len(nodes) != 1:
        return _match_silu(value, nodes)
    (node,) = nodes
    if (node.domain, node.op_type) == ("", "Gelu"):
        tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
        return Finished({"activation": int(Activation.GELU_TANH if tanh else Activation.GELU)}, [node])
    if (node.domain, node.op_type) == ("", "Relu"):
        return Finished({"activation": int(Activation.RELU)}, [node])
    return None


def match_gate(value: ir.Value) -> Finished | None:
    """Match one half of the last axis, or every other one of it, under an activation, times the rest of it."""
    for halves in _match_halves(value):
        found = _match_swiglu(halves) or _match_product(halves)
        if found is not None:
            return Finished({**found.attributes, "gate": int(halves.gate)}, [*found.nodes, *halves.nodes])
    return None


def _match_silu(value: ir.Value, nodes: list[ir.Node]) -> Finished | None:
    """Match ``value * Sigmoid(value)``."""
    products = [node for node in nodes if (node.domain, node.op_type) == ("", "Mul")]
    if len(nodes) != 2 or len(products) != 1:
        return None
    (product,) = products
    (sigmoid,) = [producer(other, "Sigmoid") for other in product.inputs if other is not value] or [None]
    if sigmoid is None or sigmoid.inputs[0] is not value or not used_once(sigmoid.outputs[0]):
        return None
    return Finished({"activation": int(Activation.SILU)}, [product, sigmoid])


def _match_halves(value: ir.Value) -> Iterator[_Halves]:
    if value.is_graph_output():
        return
    nodes = [use.node for use in value.uses()]
    if len(nodes) == 1 and _is_split_in_two(nodes[0]):
        first, second = nodes[0].outputs
        yield _Halves(Gate.FIRST, first, second, nodes)
        yield _Halves(Gate.SECOND, second, first, nodes)
    starts = {_start_of_every_other(node): node for node in nodes}
    if len(nodes) == 2 and set(starts) == {0, 1}:
        yield _Halves(Gate.EVEN, starts[0].outputs[0], starts[1].outputs[0], nodes)


def _is_split_in_two(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Split") or len(node.outputs) != 2:
        return False
    first, second = (dimensions(half) or (None,) for half in node.outputs)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return axis in {-1, len(first) - 1} and first[-1] == second[-1] and isinstance(first[-1], int)


def _start_of_every_other(node: ir.Node) -> int | None:
    """Return where a Slice of every other number of an even last axis begins, 0 or 1; None for another node."""
    axes = dimensions(node.inputs[0]) or (None,)
    if (node.domain, node.op_type) != ("", "Slice") or len(node.inputs) != 5:
        return None
    start, end, axis, step = (scalar_of(value) for value in node.inputs[1:])
    if step != 2 or axis not in (-1, len(axes) - 1) or not isinstance(axes[-1], int) or axes[-1] % 2:
        return None
    reaches_end = end is not None and end >= axes[-1]
    return int(start) if start in (0, 1) and reaches_end else None


def _match_product(halves: _Halves) -> Finished | None:
    """Match ``activation(active) * other``."""
    found = match_activation(halves.active)
    product = None if found is None else _reader(found.value, "Mul")
    if found is None or product is None or product is not _reader(halves.other, "Mul"):
        return None
    return Finished(found.attributes, [product, *found.nodes])


def _match_swiglu(halves: _Halves) -> Finished | None:
    """Match ``x * Sigmoid(alpha * x) * (y + beta)`` of clipped halves."""
    clip, other = _reader(halves.active, "Clip"), _reader(halves.other, "Clip")
    added = None if other is None else _reader(other.outputs[0], "Add")
    product = None if added is None else _reader(added.outputs[0], "Mul")
    if clip is None or other is None or added is None or product is None:
        return None
    limit = _bounds(clip)[1]
    active = _match_scaled_silu(clip.outputs[0])
    beta = _other_scalar(added, other.outputs[0])
    if _bounds(clip) != (-np.inf, limit) or _bounds(other) != (-limit, limit) or active is None or beta is None:
        return None
    if _reader(active.value, "Mul") is not product or not 0 < limit < np.inf:
        return None
    attributes = {**active.attributes, "beta": beta, "limit": limit}
    return Finished(attributes, [product, added, other, *active.nodes, clip])


def _match_scaled_silu(value: ir.Value) -> Finished | None:
    """Match ``value * Sigmoid(alpha * value)``."""
    for use in value.uses():
        alpha = _other_scalar(use.node, value)
        sigmoid = _reader(use.node.outputs[0], "Sigmoid")
        product = None if sigmoid is None else _reader(sigmoid.outputs[0], "Mul")
        if alpha is None or alpha <= 0 or sigmoid is None or product is None or use.node.op_type != "Mul":
            continue
        if value in product.inputs and len(value.uses()) == 2 and not value.is_graph_output():
            attributes = {"activation": int(Activation.SWIGLU), "alpha": alpha}
            return Finished(attributes, [product, sigmoid, use.node])
    return None


def _bounds(clip: ir.Node) -> tuple[float, float]:
    """Return what numbers are clipped to; NaN for what is no constant."""
    least, most = (*clip.inputs[1:], None, None)[:2]
    return _number(least, -np.inf), _number(most, np.inf)


def _number(value: ir.Value | None, absent: float) -> float:
    found = absent if value is None else scalar_of(value)
    return np.nan if found is None else found


def _other_scalar(node: ir.Node, value: ir.Value) -> float | None:
    """Return the constant with which a node of two inputs joins ``value``."""
    others = [it for it in node.inputs if it is not value]
    return scalar_of(others[0]) if len(node.inputs) == 2 and len(others) == 1 else None


def _reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the only node that reads ``value``, once, if it is an ``op_type``."""
    if not used_once(value):
        return None
    (use,) = value.uses()
    return use.node if (use.node.domain, use.node.op_type) == ("", op_type) else None
