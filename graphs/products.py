"""The products of activations with the backbone's weights, those that read the same activations together."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import onnx_ir as ir

from poolgraph.graphs.pattern import dimensions, is_initializer, used_once

BACKBONE_PREFIX = "backbone."
"""Of the names of the backbone's weights; those of the head stay as they are."""


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
    """Products of one source, (batch_size, sequence_length, in_features).

    ``name`` is that of the weights, and tells apart the layers that share them.
    """

    name: str
    source: ir.Value
    products: tuple[Product, ...]


def find_products(model: ir.Model) -> tuple[ProductGroup, ...]:
    """Find the products of token rows with the backbone's weights, in the graph's order.

    Pooled rows are no token rows: what the backbone computes of them stays in float32.
    """
    groups: dict[ir.Value, list[Product]] = defaultdict(list)
    for node in model.graph:
        product = _match(node)
        if product is not None:
            source = node.inputs[0]
            assert source is not None
            groups[source].append(product)
    seen: Counter[str] = Counter()
    found = []
    for source, products in groups.items():
        name = "+".join(str(product.weight.name) for product in products)
        seen[name] += 1
        found.append(ProductGroup(name if seen[name] == 1 else f"{name}#{seen[name]}", source, tuple(products)))
    return tuple(found)


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
