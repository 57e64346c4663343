"""Passes: products with weights in float32 to this package's own operators, in float32 or bfloat16."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.native import BFLOAT, FUSED, NATIVE_DOMAIN, ProductOperators, product_attributes
from poolgraph.graphs.note_routers import find_routers
from poolgraph.graphs.pattern import replace_node
from poolgraph.graphs.products import Product, find_products


def lower_products_to_native(model: ir.Model) -> int:
    """Lower the products of token rows with the backbone's weights, for the passes that fuse what stands around them.

    Given:   %y = Add(MatMul(%x, %W), %b)
    Result:  %y = poolgraph.cpu::FusedMatMul(%x, %W, %b)
    """
    products = [product for group in find_products(model) for product in group.products]
    for product in products:
        _lower(model.graph, product, FUSED)
    return len(products)


def lower_products_to_bfloat(model: ir.Model) -> int:
    """Lower the same products to those of bfloat16, but for those that choose experts.

    Result:  %y = poolgraph.cpu::BFloatMatMul(%x, %W, %b)
    """
    routers = find_routers(model)
    products = [it for group in find_products(model) for it in group.products if it.node not in routers]
    for product in products:
        _lower(model.graph, product, BFLOAT)
    return len(products)


def _lower(graph: ir.Graph, product: Product, kind: ProductOperators) -> None:
    tape = Tape()
    last = product.output.producer()
    assert last is not None
    inputs = [product.node.inputs[0], product.weight, product.bias]
    result = tape.op(kind.matmul, inputs, product_attributes(), domain=NATIVE_DOMAIN)
    graph.opset_imports[NATIVE_DOMAIN] = 1
    replace_node(graph, last, tape.nodes, result)
    if last is not product.node:
        graph.remove(product.node, safe=True)
