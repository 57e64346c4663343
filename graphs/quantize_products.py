"""Products with weights in 8 bits: activations by one scale, by one a token, or left as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from poolgraph.graphs.native import NATIVE_DOMAIN, QUANTIZED, product_attributes
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.pattern import CONTRIB_DOMAIN, add_constant, add_lazy_weight, stand_in
from poolgraph.graphs.products import Product, ProductGroup, find_products

LARGEST = 127
"""Of 8-bit weights, which are symmetric, and of activations by a scale a token, around MIDDLE."""
MIDDLE = 128
TINIEST = 1e-12
"""The least scale of a token, so that a row of zeros is no division by zero."""

Scheme = Literal["static", "token", "range", "weights"]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one group's products are quantized.

    Attributes:
        scheme: ``static``: one scale for all activations, from calibration. ``token``: one a token, from its largest
            magnitude. ``range``: a scale and a zero point a token, from its least and largest value; native only.
            ``weights``: the activations stay float32, the weights become float32 again where they are loaded.
        scale: Of static activations.
        zero_point: Of static activations.
        smoothing: What the activations are divided by and the weight's rows are multiplied by, (in_features,); None
            leaves both (SmoothQuant, arXiv 2211.10438).
        correction: What is added to the bias, (out_features,): the mean of what quantizing took from the product.
        weight_correction: The same where only the weights are quantized.
    """

    scheme: Scheme
    scale: float = 1.0
    zero_point: int = MIDDLE
    smoothing: Floats | None = None
    correction: Floats | None = None
    weight_correction: Floats | None = None

    def of_weights(self) -> Recipe:
        """Return the recipe that has the same weights and leaves the activations in float32."""
        return replace(self, scheme="weights", correction=self.weight_correction)


def quantize_products(recipes: Mapping[str, Recipe], *, native: bool = False) -> Pass:
    """Return the pass that quantizes the groups that have a recipe; products of a group become one, and a Split.

    Args:
        recipes: By the names of groups.
        native: Emit this package's own operator, which rounds, multiplies and adds in one.

    Given:   %y = Add(MatMul(%x, %W), %b)
    Result:  static   %q = QuantizeLinear(%x / smoothing, scale, zero_point)
                      %y = com.microsoft::MatMulIntegerToFloat(%q, %W8, scale, %scales, zero_point, , %b)
             token    %s = Max(ReduceMax(Abs(%x / smoothing)) / 127, tiniest); %q = QuantizeLinear(%x / %s, 1, 128)
                      %y = com.microsoft::MatMulIntegerToFloat(%q, %W8, 1, %scales, 128) * %s + %b
             weights  %y = MatMul(%x / smoothing, DequantizeLinear(%W8, %scales)) + %b
             native   %y = poolgraph.cpu::QuantizedMatMul(%x, %W8, %scales, %b, 1 / smoothing)
    """

    def pass_(model: ir.Model) -> int:
        groups = [group for group in find_products(model) if group.name in recipes]
        made: dict[ir.Value, ir.Value] = {}
        for group in groups:
            recipe = recipes[group.name]
            # A product's rows may be another product's, which has been replaced (ELECTRA's and ALBERT's embeddings).
            source = made.get(group.source, group.source)
            made |= _replace(model.graph, group, source, recipe, _emit_native if native else _EMIT[recipe.scheme])
        if groups:
            model.graph.opset_imports.setdefault(NATIVE_DOMAIN if native else CONTRIB_DOMAIN, 1)
        return len(groups)

    pass_.__name__ = "quantize_products"
    return pass_


def _replace(
    graph: ir.Graph, group: ProductGroup, source: ir.Value, recipe: Recipe, emit: _Emit
) -> dict[ir.Value, ir.Value]:
    """Put a quantized product in the place of a group, and return what stands for each of its outputs."""
    tape = Tape()
    result = emit(graph, tape, source, _quantized_weights(graph, group, recipe), recipe)
    results = [result]
    if len(group.products) > 1:
        sizes = [product.sizes[1] for product in group.products]
        split = add_constant(graph, "split_" + "_".join(map(str, sizes)), np.array(sizes, dtype=np.int64))
        results = list(tape.op_multi_out("Split", [result, split], {"axis": -1}, num_outputs=len(sizes)))
    graph.insert_before(group.products[0].node, tape.nodes)
    for product, new in zip(group.products, results, strict=True):
        stand_in(new, product.output)
        _remove(graph, product)
    return {product.output: new for product, new in zip(group.products, results, strict=True)}


def _remove(graph: ir.Graph, product: Product) -> None:
    last = product.output.producer()
    assert last is not None
    graph.remove([last] if last is product.node else [last, product.node], safe=True)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Of a group's products side by side.

    Attributes:
        matrix: int8, (in_features, out_features).
        scales: (out_features,).
        bias: The biases, corrected, (out_features,).
        inverse_smoothing: What rows are multiplied by in front of the products, (in_features,).
    """

    matrix: ir.Value
    scales: ir.Value
    bias: ir.Value | None
    inverse_smoothing: ir.Value | None


def _smoothed(tape: Tape, rows: ir.Value, weights: _Weights) -> ir.Value:
    return rows if weights.inverse_smoothing is None else tape.op("Mul", [rows, weights.inverse_smoothing])


def _emit_static(graph: ir.Graph, tape: Tape, rows: ir.Value, weights: _Weights, recipe: Recipe) -> ir.Value:
    scale = _scalar(graph, recipe.scale, np.float32)
    zero_point = _scalar(graph, recipe.zero_point, np.uint8)
    quantized = tape.op("QuantizeLinear", [_smoothed(tape, rows, weights), scale, zero_point])
    inputs = [quantized, weights.matrix, scale, weights.scales, zero_point, None, weights.bias]
    return tape.op("MatMulIntegerToFloat", inputs, domain=CONTRIB_DOMAIN)


def _emit_token(graph: ir.Graph, tape: Tape, rows: ir.Value, weights: _Weights, recipe: Recipe) -> ir.Value:
    one, middle = _scalar(graph, 1.0, np.float32), _scalar(graph, MIDDLE, np.uint8)
    last = add_constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    rows = _smoothed(tape, rows, weights)
    largest = tape.op("ReduceMax", [tape.op("Abs", [rows]), last], {"keepdims": 1})
    scale = tape.op("Mul", [largest, _scalar(graph, 1.0 / LARGEST, np.float32)])
    scale = tape.op("Max", [scale, _scalar(graph, TINIEST, np.float32)])
    quantized = tape.op("QuantizeLinear", [tape.op("Div", [rows, scale]), one, middle])
    inputs = [quantized, weights.matrix, one, weights.scales, middle]
    result = tape.op("MatMulIntegerToFloat", inputs, domain=CONTRIB_DOMAIN)
    result = tape.op("Mul", [result, scale])
    return result if weights.bias is None else tape.op("Add", [result, weights.bias])


def _emit_weights(graph: ir.Graph, tape: Tape, rows: ir.Value, weights: _Weights, recipe: Recipe) -> ir.Value:
    matrix = tape.op("DequantizeLinear", [weights.matrix, weights.scales], {"axis": 1})
    result = tape.op("MatMul", [_smoothed(tape, rows, weights), matrix])
    return result if weights.bias is None else tape.op("Add", [result, weights.bias])


def _emit_native(graph: ir.Graph, tape: Tape, rows: ir.Value, weights: _Weights, recipe: Recipe) -> ir.Value:
    is_static = recipe.scheme == "static"
    attributes = product_attributes(
        scale=recipe.scale if is_static else 0.0, zero_point=recipe.zero_point if is_static else 0
    )
    inputs = [rows, weights.matrix, weights.scales, weights.bias, weights.inverse_smoothing]
    return tape.op(QUANTIZED.matmul, inputs, attributes, domain=NATIVE_DOMAIN)


_Emit = Callable[[ir.Graph, Tape, ir.Value, _Weights, Recipe], ir.Value]
_EMIT: Mapping[str, _Emit] = {"static": _emit_static, "token": _emit_token, "weights": _emit_weights}


def _scalar(graph: ir.Graph, number: float, dtype: type[np.generic]) -> ir.Value:
    array = np.array(number, dtype=dtype)
    return add_constant(graph, f"{array.dtype}_{array.item()!r}", array)


def _quantized_weights(graph: ir.Graph, group: ProductGroup, recipe: Recipe) -> _Weights:
    """Register the weights of a group side by side; they are read and quantized only when they are written."""
    tensors = [product.weight.const_value for product in group.products]
    biases = [product.bias.const_value if product.bias is not None else None for product in group.products]
    sizes = [product.sizes for product in group.products]
    columns = sum(size[1] for size in sizes)

    def matrix() -> Floats:
        return join_weights(tensors, recipe.smoothing)

    def bias() -> Floats:
        return join_biases(biases, [size[1] for size in sizes], recipe.correction)

    name, dtype = group.name, ir.DataType.FLOAT
    has_bias = recipe.correction is not None or any(tensor is not None for tensor in biases)
    return _Weights(
        add_lazy_weight(
            graph, f"{name}.int8", ir.DataType.INT8, (sizes[0][0], columns), lambda: quantize_weights(matrix())[0]
        ),
        add_lazy_weight(graph, f"{name}.scales", dtype, (columns,), lambda: quantize_weights(matrix())[1]),
        add_lazy_weight(graph, f"{name}.{recipe.scheme}_bias", dtype, (columns,), bias) if has_bias else None,
        None if recipe.smoothing is None else add_constant(graph, f"{name}.smoothing", 1.0 / recipe.smoothing),
    )


def join_weights(tensors: Sequence[ir.TensorProtocol | None], smoothing: Floats | None) -> Floats:
    """Read weights side by side, (in_features, out_features), their rows multiplied by ``smoothing``."""
    joined = np.concatenate([tensor.numpy() for tensor in tensors if tensor is not None], axis=1)
    return joined if smoothing is None else joined * smoothing[:, None]


def join_biases(tensors: Sequence[ir.TensorProtocol | None], sizes: Sequence[int], correction: Floats | None) -> Floats:
    """Read biases side by side, (out_features,), zeros where there is none, and add ``correction``."""
    parts = [
        np.zeros(size, dtype=np.float32) if tensor is None else tensor.numpy()
        for tensor, size in zip(tensors, sizes, strict=True)
    ]
    joined = np.concatenate(parts)
    return joined if correction is None else joined + correction


def quantize_weights(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Quantize (in_features, out_features) by one symmetric scale a column; return the integers and the scales."""
    scales = np.maximum(np.abs(matrix).max(axis=0), TINIEST).astype(np.float32) / np.float32(LARGEST)
    return np.clip(np.rint(matrix / scales), -LARGEST, LARGEST).astype(np.int8), scales
