"""The products of activations with the backbone's weights, those that read the same activations together."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import onnx_ir as ir

from poolgraph.graphs.pattern import BACKBONE_PREFIX, dimensions, is_initializer, used_once

_APART = "poolgraph.apart"
"""Key of the note on products that are not joined with others of their source."""


@dataclass(frozen=True, slots=True)
class Product:
    """``source @ weight + bias``; ``bias`` is None where there is none.

    Attributes:
        node: The MatMul.
        weight: (in_features, out_features).
        bias: (out_features,).
        output: What the product is to the rest of the graph: the sum where there is a bias.
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value

    @property
    def sizes(self) -> tuple[int, int]:
        """Return in_features and out_features."""
        rows, columns = dimensions(self.weight) or ()
        return int(rows), int(columns)


@dataclass(frozen=True, slots=True)
class ProductGroup:
    """Products of one source, (batch_size, sequence_length, in_features), that are computed together.

    ``name`` is that of the weights, and tells apart the layers that share them.
    """

    name: str
    source: ir.Value
    products: tuple[Product, ...]


def find_products(model: ir.Model) -> tuple[ProductGroup, ...]:
    """Find the products of token rows with the backbone's weights, in the graph's order.

    Pooled rows are no token rows: what the backbone computes of them stays in float32.
    """
    groups: dict[tuple[ir.Value, bool], list[Product]] = defaultdict(list)
    for node in model.graph:
        product = _match(node)
        if product is not None:
            source = node.inputs[0]
            assert source is not None
            groups[source, is_apart(node)].append(product)
    seen: Counter[str] = Counter()
    found = []
    for (source, _), products in groups.items():
        name = "+".join(str(product.weight.name) for product in products)
        seen[name] += 1
        found.append(ProductGroup(name if seen[name] == 1 else f"{name}#{seen[name]}", source, tuple(products)))
    return tuple(found)


def set_apart(node: ir.Node) -> int:
    """Note that a product is not joined with others of its source; return whether that is new."""
    is_new = not is_apart(node)
    node.metadata_props[_APART] = "yes"
    return int(is_new)


def is_apart(node: ir.Node) -> bool:
    """Whether a product is noted not to be joined with others of its source."""
    return _APART in node.metadata_props


def apart_weights(model: ir.Model) -> frozenset[str]:
    """Return the names of the weights whose products are set apart."""
    return frozenset(str(node.inputs[1].name) for node in model.graph if is_apart(node) and node.inputs[1] is not None)


def _match(node: ir.Node) -> Product | None:
    if (node.domain, node.op_type) != ("", "MatMul"):
        return None
    source, weight = node.inputs
    if not (is_initializer(weight) and len(dimensions(weight) or ()) == 2 and len(dimensions(source) or ()) == 3):
        return None
    assert weight is not None
    if not str(weight.name).startswith(BACKBONE_PREFIX):
        return None
    return _with_bias(node, weight)


def _with_bias(node: ir.Node, weight: ir.Value) -> Product:
    output = node.outputs[0]
    if used_once(output):
        (use,) = output.uses()
        add = use.node
        others = [value for value in add.inputs if value is not output]
        if (add.domain, add.op_type) == ("", "Add") and len(others) == 1 and is_initializer(others[0]):
            bias = others[0]
            assert bias is not None
            if dimensions(bias) == (dimensions(weight) or ())[1:]:
                return Product(node, weight, bias, add.outputs[0])
    return Product(node, weight, None, output)
