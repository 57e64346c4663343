"""Pass: the products that choose experts stand apart, so that none is rounded with the experts it chooses among."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from poolgraph.graphs.convert_float import MOVING, SHAPES
from poolgraph.graphs.pattern import BACKBONE_PREFIX, dimensions, is_initializer
from poolgraph.graphs.products import set_apart

PASSED_THROUGH: Final = MOVING | {
    *("Abs", "Add", "Cast", "Clip", "Div", "Exp", "Log", "Max", "Min", "Mul", "Neg", "Reciprocal", "Relu", "Sigmoid"),
    *("Softmax", "Softplus", "Sqrt", "Sub", "Tanh"),
    *("ReduceMax", "ReduceSum", "TopK"),  # of a group's experts, for the group
    *("And", "ConstantOfShape", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"),
    *("ScatterElements", "Where"),  # the experts of other groups are hidden
}
"""What scores of experts go through before the largest are chosen."""


def note_routers(model: ir.Model) -> int:
    """Set the products apart whose answers choose, by TopK, what else is computed or counts.

    They read what the experts read. In one matrix with these they would share their 8 bits, and a token whose scores
    are close would be sent to another expert.
    """
    return sum(set_apart(node) for node in find_routers(model))


def find_routers(model: ir.Model) -> list[ir.Node]:
    """List the products with the backbone's weights of whose columns a TopK chooses the largest, in order."""
    choosing = [node for node in model.graph if (node.domain, node.op_type) == ("", "TopK") and _is_of_columns(node)]
    found = dict.fromkeys(_product_behind(node.inputs[0]) for node in choosing)  # groups are chosen before experts
    return [node for node in found if node is not None]


def _is_of_columns(node: ir.Node) -> bool:
    """Whether a TopK chooses among a row's columns, not among rows."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    return axis in {-1, len(dimensions(node.inputs[0]) or ()) - 1}


def router_weights(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the routers' weights."""
    return tuple(str(node.inputs[1].name) for node in find_routers(model) if node.inputs[1] is not None)


def _product_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the product that alone, with constants, decides about ``value``, by whatever ways."""
    found: ir.Node | None = None
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value is None or is_initializer(value):
            continue
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node in seen or node.op_type in SHAPES:
            continue
        seen.add(node)
        if node.op_type in PASSED_THROUGH:
            waiting.extend(node.inputs)
        elif found is not None or not _is_of_backbone(node):
            return None
        else:
            found = node
    return found


def _is_of_backbone(node: ir.Node) -> bool:
    """Whether a node is a product with a weight of the backbone."""
    if node.op_type not in {"MatMul", "Gemm"}:
        return False
    weight = node.inputs[1]
    return weight is not None and is_initializer(weight) and str(weight.name).startswith(BACKBONE_PREFIX)
