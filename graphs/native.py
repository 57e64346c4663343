"""The operators of this package's own library for the CPU: their names, inputs and attributes.

``runtime/kernels.cpp`` computes them. The numbers of activations and norms are those of its enumerations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import onnx_ir as ir

NATIVE_DOMAIN: Final = "poolgraph.cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductOperators:
    """The operators of one kind of product.

    Attributes:
        matmul: ``finish(activation(rows @ weights + bias) + residual)``. Inputs: rows (..., in_features); those of the
            product; then, each optional, residual (..., out_features), the norm's weight and bias (out_features,).
            Outputs: the answer; the sum in front of the norm, where it is asked for.
        feed_forward: Two products, the first with its activation: rows, the inputs of the first, those of the second,
            residual, the norm's weight and bias. Attributes of the products have the prefixes ``up_`` and ``down_``.
        experts: ``num_experts`` such pairs, the first products side by side, the second ones below each other. Inputs:
            rows; by how much each expert's answer counts, (..., num_experts), 0 for those that are left out; then as of
            two products, whose last bias is added once.
        num_inputs: Of one product, the matrix of its weights first, (in_features, out_features).
        attributes: Of one product.
    """

    matmul: str
    feed_forward: str
    experts: str
    num_inputs: int
    attributes: tuple[str, ...]

    @property
    def residuals(self) -> dict[str, int]:
        """Index of the residual among the inputs, by operator; the norm's weight and bias follow."""
        two = 2 * self.num_inputs
        return {self.matmul: 1 + self.num_inputs, self.feed_forward: 1 + two, self.experts: 2 + two}


QUANTIZED: Final = ProductOperators(
    matmul="QuantizedMatMul",
    feed_forward="QuantizedFeedForward",
    experts="QuantizedExperts",
    num_inputs=4,
    attributes=("scale", "zero_point", "activation", "gate"),
)
"""Weights of int8, scales and bias (out_features,), what rows are multiplied by first (in_features,)."""

FUSED: Final = ProductOperators(
    matmul="FusedMatMul",
    feed_forward="FusedFeedForward",
    experts="FusedExperts",
    num_inputs=2,
    attributes=("activation", "gate"),
)
"""Weights of float32, bias (out_features,)."""

BFLOAT: Final = replace(FUSED, matmul="BFloatMatMul", feed_forward="BFloatFeedForward", experts="BFloatExperts")
"""The same inputs, of which rows and weights are rounded to bfloat16; sums are of float32."""

PRODUCTS: Final = {kind.matmul: kind for kind in (QUANTIZED, FUSED, BFLOAT)}
"""By the name of their operator."""

RESIDUALS: Final = {name: index for kind in PRODUCTS.values() for name, index in kind.residuals.items()}
"""Index of the residual among an operator's inputs."""

ATTENTION: Final = "Attention"
"""Query, key and value (batch_size, sequence_length, heads * head_size), or all three side by side in the first input.

Packed texts are one row, (1, num_tokens, ...), with their bounds, ``cu_seqlens`` (batch_size + 1,) of int64, as the
fourth input. The query may then also be one a text, (1, batch_size, ...), that sees its whole text. Its products are
those of 16-bit integers.
"""

FLOAT_ATTENTION: Final = "FloatAttention"
"""The same in float32; ``softcap`` may limit the scores, 0 for none, and one of two inputs be added to them: the fifth,
(1 or batch_size, num_heads, sequence_length, sequence_length), to those of texts that are not packed; the sixth,
(num_heads, an odd number), whose middle column is for a key at its query's place and the ones behind for those to its
right, as far as the longest text reaches. The seventh, sinks (num_heads,), is one more score of each query, without a
value."""

PACKED_BOUNDS: Final = 3
"""Index of the bounds among the inputs of an attention."""

SCORE_BIAS: Final = 4
"""Index of what is added to the scores, a number a query and key."""

DISTANCE_TABLE: Final = 5
"""Index of what is added to the scores by the distance of the key."""

SINKS: Final = 6
"""Index of the scores without a value."""

TEXT_SUM: Final = "TextSum"
"""Weights (batch_size, num_tokens) times rows (num_tokens, size), in the order of the tokens, weights of 0 skipped."""


class Activation(IntEnum):
    """What is applied to a product's columns."""

    NONE = 0
    GELU = 1
    GELU_TANH = 2
    SILU = 3
    RELU = 4
    SWIGLU = 5
    """Of a gate alone, with SWIGLU_ATTRIBUTES: gpt-oss's."""


class Gate(IntEnum):
    """Which half of a product's columns, under the activation, multiplies the other half."""

    NONE = 0
    FIRST = 1
    SECOND = 2
    EVEN = 3
    """Every other column, from the first one on."""


SWIGLU_ATTRIBUTES: Final = ("alpha", "beta", "limit")
"""``x * sigmoid(alpha * x) * (y + beta)`` of x up to the limit, and of y between minus the limit and the limit: what
``com.microsoft.MoE`` calls ``swiglu``."""


class Norm(IntEnum):
    """What follows the sum."""

    NONE = 0
    LAYER = 1
    ROOT_MEAN_SQUARE = 2


def product_attributes(**of_kind: float) -> dict[str, int | float]:
    """Return the attributes of a bare product; 8-bit ones have ``scale``, 0 for ranges of rows, and ``zero_point``."""
    bare = {"activation": int(Activation.NONE), "gate": int(Gate.NONE), "norm": int(Norm.NONE), "epsilon": 0.0}
    return {**of_kind, **bare}


def is_plain(node: ir.Node) -> bool:
    """Whether nothing is added to a product but its bias, and no norm follows."""
    return number(node, "norm") == Norm.NONE and len(node.inputs) <= 1 + PRODUCTS[node.op_type].num_inputs


def product_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """Return a product's own inputs, None for those that it leaves out."""
    count = PRODUCTS[node.op_type].num_inputs
    return (*node.inputs[1:], *[None] * count)[:count]


def pair_attributes(up: ir.Node, down: ir.Node) -> dict[str, int | float]:
    """Return the attributes of an operator of two products, which nothing follows yet."""
    names = (*PRODUCTS[up.op_type].attributes, *SWIGLU_ATTRIBUTES)
    pairs = {
        f"{prefix}{name}": node.attributes[name].value
        for prefix, node in (("up_", up), ("down_", down))
        for name in names
        if name in node.attributes
    }
    return {**pairs, "norm": int(Norm.NONE), "epsilon": 0.0}


def native_nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """List the nodes of this package's operators, in order."""
    return [node for node in model.graph if node.domain == NATIVE_DOMAIN and node.op_type in op_types]


def number(node: ir.Node, name: str) -> int:
    """Return an integer attribute."""
    return node.attributes[name].as_int()


def set_numbers(node: ir.Node, numbers: Mapping[str, int | float]) -> None:
    """Set attributes."""
    node.attributes.update({name: ir.convenience.convert_attribute(name, value) for name, value in numbers.items()})
