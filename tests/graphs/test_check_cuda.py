"""The check that graphs stay on the GPU, on a little graph for each of its rules."""

from __future__ import annotations

import re

import onnx_ir as ir
import onnxruntime.capi.onnxruntime_pybind11_state as onnxruntime_state
import pytest

from poolgraph.errors import ExportError
from poolgraph.export.trace import OPSET_VERSION
from poolgraph.graphs.check_cuda import check_cuda
from poolgraph.graphs.cuda_kernels import CUDA_KERNELS, NO_CAPTURE, OPSETS
from poolgraph.graphs.fuse_bias_products import CUDA_DOMAIN

HEADER = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>\n'
ROWS = "float16[batch_size,sequence_length,8] x"


def graph(body: str, inputs: str = ROWS, output: str = "y", opset: int = 20) -> ir.Model:
    text = f"{HEADER}g ({inputs}) => (float16 {output}) {{ {body} }}".replace('"": 20', f'"": {opset}')
    return ir.from_onnx_text(text)


def reasons(body: str, inputs: str = ROWS) -> list[str]:
    return [finding.reason for finding in check_cuda(graph(body, inputs))]


def one_reason(body: str, inputs: str = ROWS) -> str:
    found = reasons(body, inputs)
    assert len(found) == 1, found
    return found[0]


LENGTHS = f"{ROWS}, int32[batch_size] lengths, int32 total, int32[bounds] cu_seqlens, int32[batch_size,longest] offsets"


@pytest.mark.parametrize(
    "body",
    [
        "y = Tanh(x)",
        "a = com.microsoft.MultiHeadAttention<num_heads=2>(x, x, x, , lengths)  y = Add(a, x)",
        "y, k, v = com.microsoft.GroupQueryAttention<num_heads=1, kv_num_heads=1>(x, x, x, , , lengths, total)",
        "zero = Constant<value_ints=[0]>()  r = Squeeze(x, zero)"
        "  y = com.microsoft.PackedMultiHeadAttention<num_heads=1>(r, r, r, , offsets, cu_seqlens)",
        # Computing shapes on the host is free: what reads them there needs no copy.
        "s = Shape<start=1, end=2>(x)  m = Constant<value_ints=[-1]>()  t = Concat<axis=0>(m, s)  y = Reshape(x, t)",
        "s = Shape(x)  c = ConstantOfShape<value=float16[1] {0}>(s)  y = Add(c, x)",
        # A range whose limit is a shape is made on the device.
        "s = Shape<start=1, end=2>(x)  n = Squeeze(s)  zero = Constant<value_int=0>()  one = Constant<value_int=1>()"
        "  p = Range(zero, n, one)  axes = Constant<value_ints=[1]>()  u = Unsqueeze(lengths, axes)"
        "  w = Cast<to=7>(u)  seen = Less(p, w)  y = Cast<to=10>(seen)",
        "a, b = Split<axis=2, num_outputs=2>(x)  y = Mul(a, b)",
        "p = Constant<value_ints=[4, 2, 2]>()  a, b, y = Split<axis=-1>(x, p)",
        "y = Concat<axis=1>(x, x)",
        f"y = Concat<axis=1>({', '.join(['x'] * 32)})",
    ],
)
def test_graphs_that_stay_on_the_gpu(body: str) -> None:
    assert reasons(body, LENGTHS) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Hardmax(x)", "no CUDA kernel of it is known"),
        ("b = Cast<to=16>(x)  y = ReduceMax(b)", "no CUDA kernel for bfloat16"),
        ("b = Cast<to=16>(x)  m = ReduceMean(b)  y = Cast<to=10>(m)", "no CUDA kernel for bfloat16"),
        ("b = Cast<to=9>(x)  y = ReduceMax(b)", "no CUDA kernel for bool"),
        ("i = Cast<to=6>(x)  y = Clip(i)", "no CUDA kernel for int32"),
        ("b = Cast<to=16>(x)  y = com.microsoft.RestorePadding(b, lengths)", "bfloat16"),
        ("f = Cast<to=1>(x)  y, k, v = com.microsoft.GroupQueryAttention(f, f, f, , , lengths, total)", "for float,"),
    ],
)
def test_nodes_that_fall_to_the_cpu(body: str, message: str) -> None:
    inputs = f"{ROWS}, int32[batch_size] lengths, int32 total"
    assert message in reasons(body, inputs)[0]


def test_a_node_on_the_cpu_needs_copies_too() -> None:
    found = reasons("a = Relu(x)  b = Hardmax(a)  y = Tanh(b)")
    assert [reason.split(":")[0] for reason in found] == [
        "no CUDA kernel of it is known (graphs/cuda_kernels.py)",
        "it reads a on the host, which is computed on the device",
        "it reads b on the device, which is computed on the host",
    ]


def test_what_shapes_are_compared_with_is_copied() -> None:
    """The shape is computed on the CPU and compared with what is made of the lengths on the device."""
    body = "s = Shape<start=1, end=2>(x)  n = Mul(s, s)  l = Mul(lengths, lengths)  b = Less(n, l)  y = Cast<to=10>(b)"
    found = one_reason(body, f"{ROWS}, int64[batch_size] lengths")
    assert found == "it reads n on the device, which is computed on the host: a copy"


@pytest.mark.parametrize(
    "body",
    [
        "l = ReduceMax<keepdims=0>(lengths)  z = Constant<value_int=0>()  o = Constant<value_int=1>()"
        "  r = Range(z, l, o)  y = Cast<to=10>(r)",
        "made = Add(lengths, lengths)  y = Reshape(x, made)",
        "made = Mul(lengths, lengths)  y = Expand(x, made)",
        "made = Mul(lengths, lengths)  y = ConstantOfShape<value=float16[1] {0}>(made)",
        "made = Mul(lengths, lengths)  zero = Constant<value_ints=[0]>()  y = Slice(x, zero, made)",
    ],
)
def test_shapes_computed_from_data_are_copied_back(body: str) -> None:
    found = one_reason(body, f"{ROWS}, int64[three] lengths")
    assert "computed on the device: a copy, for which the host waits" in found


def test_an_input_read_on_both_sides_is_copied() -> None:
    inputs = f"{ROWS}, int64[three] lengths"
    body = "r = Reshape(x, lengths)  l = Cast<to=10>(lengths)  y = Mul(r, l)"
    assert "others on the device" in one_reason(body, inputs)


def test_total_sequence_length_is_an_input() -> None:
    body = (
        "s = Shape<start=1, end=2>(x)  n = Squeeze(s)  total = Cast<to=6>(n)"
        "  y, k, v = com.microsoft.GroupQueryAttention<num_heads=1, kv_num_heads=1>(x, x, x, , , lengths, total)"
    )
    assert "make it an input" in one_reason(body, f"{ROWS}, int32[batch_size] lengths")


@pytest.mark.parametrize(
    "body",
    [
        "i = NonZero(x)  y = Cast<to=10>(i)",
        "b = Cast<to=9>(x)  y = Compress(x, b)",
        "i = Constant<value=int64[1,1] {0}>()  y = GatherND(x, i)",
        "c = Constant<value=bool {1}>()  y = If(c) <then_branch = t () => (float16 a) { a = Relu(x) },"
        " else_branch = e () => (float16 b) { b = Tanh(x) }>",
        "r, o, c, m = com.microsoft.RemovePadding(x, lengths)  y = Relu(r)",
    ],
)
def test_what_a_capture_stops_at(body: str) -> None:
    found = reasons(body, f"{ROWS}, int32[batch_size] lengths")
    assert "a CUDA graph cannot have it" in found[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("p = Constant<value_ints=[6, 2]>()  a, y = Split<axis=-1>(x, p)", r"splits into \[6, 2\]"),
        ("p = Constant<value_ints=[1, 2, 1]>()  a, b, y = Split<axis=0>(x, p)", r"splits into \[1, 2, 1\]"),
        ("y = Concat<axis=-1>(x, z)", "it joins 2 inputs of sizes"),
        (f"y = Concat<axis=-1>({', '.join(['x'] * 33)})", "it joins 33 inputs of sizes"),
        (f"{', '.join(f'p{i}' for i in range(32))}, y = Split<axis=0, num_outputs=33>(x)", "it splits into 33,"),
        ("y = MatMul(w, x)", "batches that broadcast"),
        ("y = MatMul(one, x)", "batches that broadcast"),
    ],
)
def test_kernels_whose_captured_copies_are_stale(body: str, message: str) -> None:
    more = "float16[batch_size,sequence_length,4] z, float16[4,sequence_length] w, float16[1,4,sequence_length] one"
    assert re.search(message, one_reason(body, f"{ROWS}, {more}"))


def test_products_that_cublas_strides_through() -> None:
    inputs = f"{ROWS}, float16[8,4] w, float16[batch_size,8,sequence_length] t"
    assert reasons("y = MatMul(x, w)", inputs) == []
    assert reasons("y = MatMul(x, t)", inputs) == []


def test_findings_name_the_node() -> None:
    (finding,) = check_cuda(graph("y = Hardmax(x)"))
    assert (finding.node, finding.operator) == ("y", "ai.onnx::Hardmax")
    assert str(finding).startswith("ai.onnx::Hardmax y: no CUDA kernel")


def test_an_opset_without_a_table_is_refused() -> None:
    assert OPSET_VERSION in OPSETS
    with pytest.raises(ExportError, match="opset 24"):
        check_cuda(graph("y = Relu(x)", opset=24))


STOCK = {key: kernel for key, kernel in CUDA_KERNELS.items() if key[0] != CUDA_DOMAIN}
"""Those of ONNX Runtime; the others are poolgraph's own."""


def test_the_table_has_operators_of_onnx_runtime() -> None:
    schemas = {(it.domain, it.name): it for it in onnxruntime_state.get_all_operator_schema()}
    assert set(STOCK) <= schemas.keys()
    assert NO_CAPTURE.keys() - {("com.microsoft", "GemmFloat8")} <= schemas.keys()
    for key, kernel in STOCK.items():
        schema = schemas[key]
        assert len(kernel.types) > 0
        assert max(kernel.host_inputs, default=0) < max(len(schema.inputs), 1), key


def test_types_agree_with_the_schemas() -> None:
    """A type that the operator does not have at all would be a slip of the table."""
    names = {it: f"tensor({it.name.lower()})" for it in ir.DataType}
    for (domain, name), kernel in STOCK.items():
        versions = [
            it
            for it in onnxruntime_state.get_all_operator_schema()
            if (it.domain, it.name) == (domain, name) and it.since_version <= OPSETS[-1]
        ]
        schema = max(versions, key=lambda it: it.since_version)
        allowed = {kind for it in schema.type_constraints for kind in it.allowed_type_strs}
        assert {names[it] for it in kernel.types} - allowed <= {"tensor(double)"}, name
