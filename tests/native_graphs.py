"""Graphs of one native operator, run on ONNX Runtime, and what the operators compute, in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from scipy.special import erf

from poolgraph.graphs.manifest import NATIVE_OPERATORS
from poolgraph.graphs.native import (
    BFLOAT,
    NATIVE_DOMAIN,
    QUANTIZED,
    SWIGLU_ATTRIBUTES,
    Activation,
    Gate,
    Norm,
    ProductOperators,
)
from poolgraph.graphs.pipeline import NATIVE_FP32, NATIVE_INT8
from poolgraph.runtime.native_library import can_run
from poolgraph.runtime.session import register_operators

needs_native = pytest.mark.skipif(not can_run(NATIVE_INT8), reason="needs AVX2 with FMA, and a compiler")

FLOAT32 = (*(("native_fp32",) if can_run(NATIVE_FP32) else ()), "cpu_fp32", "portable_fp32")
"""Variants of an artifact for the CPU in float32, the one that the runtime takes first."""

Array = np.ndarray[Any, Any]


def native_session(
    op_type: str,
    inputs: Mapping[str, Array | None],
    attributes: Mapping[str, Any],
    fed: tuple[str, ...],
    outputs: int = 1,
    threads: int = 1,
) -> onnxruntime.InferenceSession:
    """Open a graph of one operator; inputs that are not fed are constants, None ones absent."""
    values, initializers, graph_inputs = [], [], []
    for name, array in inputs.items():
        if array is None:
            values.append(None)
            continue
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        if name in fed:
            value.shape = ir.Shape([f"{name}_{axis}" for axis in range(array.ndim)])
            graph_inputs.append(value)
        else:
            value.shape, value.const_value = ir.Shape(array.shape), ir.tensor(array, name=name)
            initializers.append(value)
        values.append(value)
    node = ir.node(op_type, values, dict(attributes), domain=NATIVE_DOMAIN, num_outputs=outputs)
    for index, value in enumerate(node.outputs):
        value.name, value.type = f"out_{index}", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        graph_inputs, node.outputs, nodes=[node], initializers=initializers, opset_imports={"": 20, NATIVE_DOMAIN: 1}
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    register_operators(options, NATIVE_OPERATORS)
    return onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(), options)


@dataclass(frozen=True, kw_only=True)
class ProductCase:
    """One product, its weights random; of a quantized one ``scale`` 0 rounds by the row."""

    kind: ProductOperators = QUANTIZED
    in_features: int = 64
    out_features: int = 64
    scale: float = 0.0
    zero_point: int = 0
    bias: bool = True
    factors: bool = False
    activation: Activation = Activation.NONE
    gate: Gate = Gate.NONE
    seed: int = 0
    weights: dict[str, Array | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        floats = lambda *shape: draw.standard_normal(shape).astype(np.float32)  # noqa: E731
        bias = floats(self.out_features) if self.bias else None
        if self.kind is not QUANTIZED:
            self.weights.update(weights=floats(self.in_features, self.out_features), bias=bias)
            return
        self.weights.update(
            weights=draw.integers(-127, 128, (self.in_features, self.out_features)).astype(np.int8),
            scales=np.abs(floats(self.out_features)) * 1e-3 + 1e-4,
            bias=bias,
            factors=np.exp(floats(self.in_features)).astype(np.float32) if self.factors else None,
        )

    @property
    def width(self) -> int:
        """Columns of the answer."""
        return self.out_features if self.gate == Gate.NONE else self.out_features // 2

    def attributes(self, prefix: str = "") -> dict[str, Any]:
        """The product's part of a node's attributes."""
        values = {
            "scale": self.scale,
            "zero_point": self.zero_point,
            "activation": int(self.activation),
            "gate": int(self.gate),
            **SWIGLU,
        }
        more = SWIGLU_ATTRIBUTES if self.activation == Activation.SWIGLU else ()
        return {prefix + name: values[name] for name in (*self.kind.attributes, *more)}

    def expected(self, rows: Array) -> Array:
        """The answer in float64."""
        bias = self.weights["bias"]
        columns = self._columns(rows) + (0 if bias is None else bias)
        return gated(columns, self.activation, self.gate)

    def _columns(self, rows: Array) -> Array:
        if self.kind is not QUANTIZED:
            left, right = rows.astype(np.float32), self.weights["weights"]
            if self.kind is BFLOAT:
                left, right = left.astype(bfloat16), right.astype(bfloat16)
            return left.astype(np.float64) @ right.astype(np.float64)
        weights, scales, _, factors = self.weights.values()
        scaled = rows.astype(np.float32) * (1 if factors is None else factors)
        if self.scale:
            own = np.float32(self.scale)
            rounded = np.clip(np.rint(scaled / own) + self.zero_point, 0, 255) - self.zero_point
        else:
            low, high = (np.asarray(side, dtype=np.float32) for side in (scaled.min(-1), scaled.max(-1)))
            low, high = np.minimum(low, 0)[..., None], np.maximum(high, 0)[..., None]
            own = np.maximum(2 * (high / np.float32(510) - low / np.float32(510)), np.float32(1e-12))
            zero = np.rint(-low / own)
            rounded = np.clip(np.rint(scaled * (np.float32(1) / own)) + zero, 0, 255) - zero
        sums: Array = rounded.astype(np.float64) @ weights.astype(np.float64)
        return sums * scales * own


def gated(columns: Array, activation: Activation, gate: Gate) -> Array:
    """Apply an activation, to one half where there is a gate."""
    if gate == Gate.NONE:
        return ACTIVATIONS[activation](columns)
    halves = (columns[..., ::2], columns[..., 1::2]) if gate == Gate.EVEN else np.split(columns, 2, axis=-1)
    active, other = halves[::-1] if gate == Gate.SECOND else halves
    if activation == Activation.SWIGLU:
        limit = SWIGLU["limit"]
        active, other = np.minimum(active, limit), np.clip(other, -limit, limit)
        return active / (1 + np.exp(-SWIGLU["alpha"] * active)) * (other + SWIGLU["beta"])
    return ACTIVATIONS[activation](active) * other


SWIGLU = {"alpha": 1.702, "beta": 1.0, "limit": 7.0}
"""Those of gpt-oss."""

ACTIVATIONS = {
    Activation.NONE: lambda x: x,
    Activation.GELU: lambda x: x * (1 + erf(x / sqrt(2))) / 2,
    Activation.GELU_TANH: lambda x: x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    Activation.SILU: lambda x: x / (1 + np.exp(-x)),
    Activation.RELU: lambda x: np.maximum(x, 0),
}
"""Of one number; SwiGLU takes two."""


def normalized(rows: Array, norm: Norm, weight: Array, bias: Array | None, epsilon: float) -> Array:
    """The norm of rows in float64."""
    centred = rows - rows.mean(-1, keepdims=True) if norm == Norm.LAYER else rows
    result = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight
    return result if bias is None else result + bias
