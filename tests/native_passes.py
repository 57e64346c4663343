"""Little graphs whose products are native ones, run on ONNX Runtime with this package's operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from little_graphs import build

from poolgraph.graphs.lower_products import lower_products_to_native
from poolgraph.graphs.manifest import NATIVE_OPERATORS
from poolgraph.graphs.native import FUSED, QUANTIZED, ProductOperators
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.products import find_products
from poolgraph.graphs.quantize_products import Recipe, quantize_products
from poolgraph.runtime.session import register_operators

each_kind = pytest.mark.parametrize("kind", [QUANTIZED, FUSED], ids=lambda it: it.matmul)


def native(kind: ProductOperators, text: str, **weights: np.ndarray) -> ir.Model:
    """A little graph whose products are native ones."""
    model = build(text, **weights)
    if kind is FUSED:
        assert lower_products_to_native(model) > 0
        assert lower_products_to_native(model) == 0
        return model
    recipes = {group.name: Recipe(scheme="range") for group in find_products(model)}
    assert quantize_products(recipes, native=True)(model) == len(recipes)
    return model


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    register_operators(options, NATIVE_OPERATORS)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, feeds)


def apply(model: ir.Model, passes: Sequence[Pass]) -> list[int]:
    """Run passes; a second run of each finds nothing."""
    counts = []
    for one in passes:
        counts.append(one(model))
        assert one(model) == 0
    return counts
