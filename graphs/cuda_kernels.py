"""The operators that ONNX Runtime's CUDA provider has kernels for: for which types, and what they keep on the host.

Source: the CUDA part of ``docs/OperatorKernels.md`` and the kernels' registrations, microsoft/onnxruntime at the merge
``cc8e901ce`` (version 1.30.0, August 2026), of which only the rows for OPSETS and for what graphs of this package may
use are here. The kernels of 1.31.1, which were read from its library, are the same as far as they could be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from poolgraph.graphs.fuse_bias_products import BIAS_MATMUL, CUDA_DOMAIN
from poolgraph.graphs.pattern import CONTRIB_DOMAIN

OPSETS = range(18, 22)
"""Versions of the standard operators for which the table is right; 22 brings bfloat16 to more of them."""

RESULT = -1
"""In the place of an input: the kernel is chosen by the type of its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaKernel:
    """What there is of one operator.

    Attributes:
        types: Types that it has kernels for.
        chosen_by: The input whose type chooses, or RESULT.
        host_inputs: Inputs that the kernel reads on the host, among them shapes and axes.
        is_host_result: Whether its result is on the host.
        result: Type of its results, None where it is the type that chooses.
    """

    types: frozenset[ir.DataType]
    chosen_by: int = 0
    host_inputs: frozenset[int] = frozenset()
    is_host_result: bool = False
    result: ir.DataType | None = None


def _types(names: str) -> frozenset[ir.DataType]:
    return frozenset(ir.DataType[name.upper()] for name in names.split())


_FLOATS = "double float float16 bfloat16"
_NO_BFLOAT16 = "double float float16"
_CONTRIB_FLOATS = "float float16 bfloat16"
_INTEGERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64"
_COMPARED = f"{_NO_BFLOAT16} int32 int64 uint32 uint64"
_EVERY = f"{_FLOATS} {_INTEGERS} bool"

_BY_TYPES: Mapping[str, str] = {
    "Abs": f"{_FLOATS} {_INTEGERS}",
    "Add": f"{_FLOATS} {_INTEGERS}",
    "And": "bool",
    "Ceil": _NO_BFLOAT16,
    "Clip": f"{_NO_BFLOAT16} int8 int64 uint8 uint64",
    "Concat": _EVERY,
    "Conv": _NO_BFLOAT16,
    "Cos": _NO_BFLOAT16,
    "Div": f"{_FLOATS} {_INTEGERS}",
    "Einsum": _NO_BFLOAT16,
    "Elu": _NO_BFLOAT16,
    "Erf": _FLOATS,
    "Exp": _FLOATS,
    "Flatten": _EVERY,
    "Floor": _NO_BFLOAT16,
    "Gather": _EVERY,
    "GatherElements": _EVERY,
    "GatherND": f"{_FLOATS} int64 bool",
    "Gelu": _FLOATS,
    "Gemm": _FLOATS,
    "HardSigmoid": _NO_BFLOAT16,
    "HardSwish": _NO_BFLOAT16,
    "Identity": _EVERY,
    "LayerNormalization": _FLOATS,
    "LeakyRelu": _NO_BFLOAT16,
    "Log": _NO_BFLOAT16,
    "LogSoftmax": _NO_BFLOAT16,
    "LpNormalization": _NO_BFLOAT16,
    "MatMul": _FLOATS,
    "Max": f"{_FLOATS} int32 int64 uint32 uint64",
    "Min": f"{_FLOATS} int32 int64 uint32 uint64",
    "Mod": f"{_FLOATS} int32 int64 uint32 uint64",
    "Mul": f"{_FLOATS} {_INTEGERS}",
    "Neg": f"{_FLOATS} int8 int16 int32 int64",
    "Not": "bool",
    "Or": "bool",
    "Pow": f"{_FLOATS} int32 int64",
    "Reciprocal": _NO_BFLOAT16,
    "ReduceL2": f"{_NO_BFLOAT16} int32",
    "ReduceLogSumExp": _NO_BFLOAT16,
    "ReduceMax": f"{_NO_BFLOAT16} int8 int32 int64 uint8",
    "ReduceMean": f"{_NO_BFLOAT16} int32",
    "ReduceMin": f"{_NO_BFLOAT16} int8 int32 int64 uint8",
    "ReduceProd": f"{_NO_BFLOAT16} int32",
    "ReduceSum": f"{_FLOATS} int32 int64",
    "ReduceSumSquare": _NO_BFLOAT16,
    "Relu": _FLOATS,
    "Round": _NO_BFLOAT16,
    "ScatterElements": _EVERY,
    "ScatterND": _EVERY,
    "Sigmoid": _FLOATS,
    "Sign": f"{_FLOATS} {_INTEGERS}",
    "SimplifiedLayerNormalization": _FLOATS,
    "Sin": _NO_BFLOAT16,
    "Softmax": _FLOATS,
    "Softplus": _NO_BFLOAT16,
    "Softsign": _NO_BFLOAT16,
    "Sqrt": _FLOATS,
    "Sub": f"{_FLOATS} {_INTEGERS}",
    "Sum": _FLOATS,
    "Tanh": _FLOATS,
    "Transpose": _EVERY,
    "Xor": "bool",
}
"""Standard operators of which the first input chooses, with all inputs and results on the device."""

_COMPARISONS: Mapping[str, str] = {
    "Equal": f"{_COMPARED} bool",
    "Greater": _COMPARED,
    "GreaterOrEqual": _COMPARED,
    "IsInf": _FLOATS,
    "IsNaN": _FLOATS,
    "Less": _COMPARED,
    "LessOrEqual": _COMPARED,
}

_BY_HOST_INPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "CumSum": (f"{_NO_BFLOAT16} int32 int64 uint32 uint64", (1,)),
    "Expand": (_EVERY, (1,)),
    "Pad": (f"{_NO_BFLOAT16} bool", (1, 2, 3)),
    "Range": ("double float int16 int32 int64", (0, 1, 2)),
    "Reshape": (_EVERY, (1,)),
    "Slice": (_EVERY, (1, 2, 3, 4)),
    "Split": (_EVERY, (1,)),
    "Squeeze": (_EVERY, (1,)),
    "Tile": (f"{_FLOATS} int32 int64", (1,)),
    "TopK": (f"{_NO_BFLOAT16} int8 int16 int32 int64 uint8", (1,)),
    "Trilu": (_EVERY, (1,)),
    "Unsqueeze": (_EVERY, (1,)),
}

_CONTRIB: Mapping[str, str] = {
    "BiasGelu": _FLOATS,
    "BiasSoftmax": _NO_BFLOAT16,
    "CausalConvWithState": _CONTRIB_FLOATS,
    "FastGelu": _FLOATS,
    "FusedMatMul": _FLOATS,
    "GatedRMSNorm": _CONTRIB_FLOATS,
    "Gelu": _FLOATS,
    "LinearAttention": _CONTRIB_FLOATS,
    "MoE": _CONTRIB_FLOATS,
    "MultiHeadAttention": _CONTRIB_FLOATS,
    "PackedMultiHeadAttention": "float float16",
    "QuickGelu": _FLOATS,
    "RestorePadding": "float float16",
    "RotaryEmbedding": _CONTRIB_FLOATS,
    "SkipLayerNormalization": _CONTRIB_FLOATS,
    "SkipSimplifiedLayerNormalization": _CONTRIB_FLOATS,
}

_SPECIAL: Mapping[tuple[str, str], CudaKernel] = {
    ("", "Cast"): CudaKernel(types=_types(_EVERY), chosen_by=RESULT),
    ("", "ConstantOfShape"): CudaKernel(
        types=_types(_EVERY) - {ir.DataType.BFLOAT16}, chosen_by=RESULT, host_inputs=frozenset({0})
    ),
    ("", "Shape"): CudaKernel(types=_types(_EVERY), is_host_result=True, result=ir.DataType.INT64),
    ("", "Size"): CudaKernel(types=_types(_EVERY), is_host_result=True, result=ir.DataType.INT64),
    ("", "Where"): CudaKernel(types=_types(f"{_FLOATS} int32 int64 uint8"), chosen_by=1),
    (CONTRIB_DOMAIN, "GroupQueryAttention"): CudaKernel(types=_types("float16 bfloat16"), host_inputs=frozenset({6})),
    (CUDA_DOMAIN, BIAS_MATMUL): CudaKernel(types=_types("float16 bfloat16")),
}

CUDA_KERNELS: Mapping[tuple[str, str], CudaKernel] = MappingProxyType(
    {("", name): CudaKernel(types=_types(types)) for name, types in _BY_TYPES.items()}
    | {("", name): CudaKernel(types=_types(it), result=ir.DataType.BOOL) for name, it in _COMPARISONS.items()}
    | {
        ("", name): CudaKernel(types=_types(types), host_inputs=frozenset(inputs))
        for name, (types, inputs) in _BY_HOST_INPUTS.items()
    }
    | {(CONTRIB_DOMAIN, name): CudaKernel(types=_types(types)) for name, types in _CONTRIB.items()}
    | dict(_SPECIAL)
)
"""By domain and name. What is not here has no kernel, or is not known to have one."""

_DATA_DEPENDENT = "the host waits to learn how large its result is"
NO_CAPTURE: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("", "Compress"): _DATA_DEPENDENT,
        ("", "NonZero"): _DATA_DEPENDENT,
        ("", "Unique"): _DATA_DEPENDENT,
        (CONTRIB_DOMAIN, "RemovePadding"): _DATA_DEPENDENT,
        (CONTRIB_DOMAIN, "GemmFloat8"): "it allocates memory and waits in every call",
        ("", "GatherND"): "it copies sizes from memory of the host that is gone when the graph is replayed",
        ("", "If"): "control flow runs on the host",
        ("", "Loop"): "control flow runs on the host",
        ("", "Scan"): "control flow runs on the host",
    }
)
"""Operators that stop the capture of a CUDA graph or make its replay wrong, with the reason."""
