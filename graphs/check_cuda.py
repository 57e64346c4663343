"""Whether a lowered graph stays on the GPU: no node on the CPU, no copy within the graph, nothing a capture stops at.

Where nodes run is decided as ONNX Runtime does it: on CUDA where there is a kernel; then those that read what is on the
host and nothing of the device go to the CPU (``GetCpuPreferredNodes``), which are the computations of shapes. A value
written on one side and read on the other is a copy (``MemcpyTransformer``), with which a session refuses to capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from poolgraph.errors import ExportError
from poolgraph.graphs.cuda_kernels import CUDA_KERNELS, NO_CAPTURE, OPSETS, RESULT, CudaKernel
from poolgraph.graphs.pattern import CONTRIB_DOMAIN, dimensions, is_initializer

SMALL_INITIALIZER = 100
"""Numbers up to which a constant does not keep a node from the CPU (``kSmallInitializerThreshold``)."""

TOTAL_SEQUENCE_LENGTH = 6
MOST_POINTERS = 32
"""Inputs of Concat or results of Split up to which the kernel takes their addresses as arguments."""

_UNKNOWN = CudaKernel(types=frozenset())
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_STALE = "whose kernel copies addresses or sizes from the host, which are gone when a captured graph is replayed"


@dataclass(frozen=True, slots=True)
class CudaFinding:
    """One reason why a graph does not stay on the GPU.

    Attributes:
        node: The node's name, or that of its first result.
        operator: Domain and name of its operator.
        reason: What is wrong.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where nodes run: of those on CUDA the kernel."""

    kernels: Mapping[ir.Node, CudaKernel]
    missing: Mapping[ir.Node, str]


def check_cuda(model: ir.Model) -> list[CudaFinding]:
    """Return why a lowered graph would leave the GPU or could not be captured, in the order of its nodes.

    Args:
        model: A graph of standard operators and ONNX Runtime's; types that are not noted are inferred.

    Raises:
        ExportError: The graph's opset is not one that the table of kernels is for.
    """
    version = model.graph.opset_imports.get("", OPSETS[0])
    if version not in OPSETS:
        raise ExportError(
            f"the graph is of opset {version}; the table of CUDA kernels is for {OPSETS[0]} to {OPSETS[-1]}: trace it "
            "with one of these, or renew graphs/cuda_kernels.py"
        )
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    placement = _place(nodes)
    copies = _copies(model.graph, nodes, placement)
    return [
        CudaFinding(_name(node), f"{node.domain or 'ai.onnx'}::{node.op_type}", reason)
        for node in nodes
        for reason in (*_problems(node, placement), *copies.get(node, ()))
    ]


def _problems(node: ir.Node, placement: _Placement) -> Iterator[str]:
    stops = NO_CAPTURE.get((node.domain, node.op_type))
    if stops is not None:
        yield f"a CUDA graph cannot have it: {stops}"
    elif node in placement.missing:
        yield placement.missing[node]
    elif node in placement.kernels:
        stale = _STALE_COPIES.get((node.domain, node.op_type))
        if stale is not None and (found := stale(node)) is not None:
            yield found
        if (node.domain, node.op_type) == (CONTRIB_DOMAIN, "GroupQueryAttention"):
            yield from _total_sequence_length(node)


def _total_sequence_length(node: ir.Node) -> Iterator[str]:
    value = node.inputs[TOTAL_SEQUENCE_LENGTH]
    if value is not None and not (value.is_graph_input() or _is_constant(value)):
        yield f"total_sequence_length {value.name} is computed; the kernel reads it on the host: make it an input"


def _place(nodes: list[ir.Node]) -> _Placement:
    types: dict[ir.Value, ir.DataType] = {}
    kernels, missing = {}, {}
    for node in nodes:
        kernel = CUDA_KERNELS.get((node.domain, node.op_type))
        _infer_types(node, kernel, types)
        problem = _missing_kernel(node, kernel, types)
        if problem is not None:
            missing[node] = problem
        elif kernel is not None:
            kernels[node] = kernel
    host = {value for node, it in kernels.items() if it.is_host_result for value in node.outputs}
    for node in nodes:
        if node in missing:
            host.update(node.outputs)
        elif _is_preferred_on_cpu(node, kernels[node], host, types):
            host.update(node.outputs)
            del kernels[node]
    return _Placement(kernels, missing)


def _is_preferred_on_cpu(
    node: ir.Node, kernel: CudaKernel, host: set[ir.Value], types: Mapping[ir.Value, ir.DataType]
) -> bool:
    given = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
    if not any(value in host for _, value in given) or any(_type_of(value, types) in _HALVES for _, value in given):
        return False
    for index, value in given:
        small = _is_constant(value) and _size(value) <= SMALL_INITIALIZER
        if not small and not value.is_graph_input() and (value not in host or index in kernel.host_inputs):
            return False
    return True


def _copies(graph: ir.Graph, nodes: list[ir.Node], placement: _Placement) -> dict[ir.Node, list[str]]:
    """Return by reading node what has to be copied for it."""
    host_written: set[ir.Value] = set()
    host_read: set[ir.Value] = set()
    device_read: set[ir.Value] = set()
    for node in nodes:
        kernel = placement.kernels.get(node)
        for index, value in enumerate(node.inputs):
            on_host = kernel is None or index in kernel.host_inputs
            if value is not None and not _is_constant(value):
                (host_read if on_host else device_read).add(value)
        if kernel is None or kernel.is_host_result:
            host_written.update(node.outputs)
    split_inputs = {value for value in graph.inputs if value in host_read and value in device_read}
    result: dict[ir.Node, list[str]] = {}
    for node in nodes:
        kernel = placement.kernels.get(node)
        for index, value in enumerate(node.inputs):
            on_host = kernel is None or index in kernel.host_inputs
            reason = _copy_reason(value, on_host, host_written, split_inputs)
            if reason is not None:
                result.setdefault(node, []).append(reason)
    return result


def _copy_reason(
    value: ir.Value | None, on_host: bool, host_written: set[ir.Value], split_inputs: set[ir.Value]
) -> str | None:
    if value is None or _is_constant(value):
        return None
    if value in split_inputs:
        return f"it reads the input {value.name} on the host, others on the device: a copy" if on_host else None
    if value.is_graph_input() or on_host == (value in host_written):
        return None
    if on_host:
        return f"it reads {value.name} on the host, which is computed on the device: a copy, for which the host waits"
    return f"it reads {value.name} on the device, which is computed on the host: a copy"


def _missing_kernel(node: ir.Node, kernel: CudaKernel | None, types: Mapping[ir.Value, ir.DataType]) -> str | None:
    if kernel is None:
        return "no CUDA kernel of it is known (graphs/cuda_kernels.py): it runs on the CPU"
    judged = node.outputs[0] if kernel.chosen_by == RESULT else node.inputs[kernel.chosen_by]
    found = None if judged is None else _type_of(judged, types)
    if found is None:
        return "the type of what it reads is not known, and so whether it has a CUDA kernel"
    if found not in kernel.types:
        known = ", ".join(sorted(it.name.lower() for it in kernel.types))
        return f"no CUDA kernel for {found.name.lower()}, only for {known}: it runs on the CPU"
    return None


def _infer_types(node: ir.Node, kernel: CudaKernel | None, types: dict[ir.Value, ir.DataType]) -> None:
    """Note the types of a node's results that the graph does not note; what is not known keeps its input's."""
    if kernel is None:
        kernel = _UNKNOWN
    found = kernel.result
    if (node.domain, node.op_type) == ("", "Cast"):
        found = ir.DataType(node.attributes["to"].as_int())
    elif (node.domain, node.op_type) == ("", "ConstantOfShape"):
        filled = node.attributes.get("value")
        found = ir.DataType.FLOAT if filled is None else filled.as_tensor().dtype
    elif found is None:
        value = node.inputs[kernel.chosen_by] if node.inputs else None
        found = None if value is None else _type_of(value, types)
    if found is not None:
        types.update((value, value.dtype or found) for value in node.outputs)


def _type_of(value: ir.Value, types: Mapping[ir.Value, ir.DataType]) -> ir.DataType | None:
    if value in types:
        return types[value]
    constant = ir.convenience.get_const_tensor(value)
    return value.dtype if constant is None else constant.dtype


def _is_constant(value: ir.Value) -> bool:
    made = value.producer()
    return is_initializer(value) or (made is not None and made.op_type == "Constant")


def _size(value: ir.Value) -> int:
    constant = ir.convenience.get_const_tensor(value)
    return SMALL_INITIALIZER + 1 if constant is None else constant.size


def _unequal_concat(node: ir.Node) -> str | None:
    axis = node.attributes["axis"].as_int()
    shapes = [dimensions(value) for value in node.inputs]
    sizes = {shape[axis] for shape in shapes if shape is not None}
    if len(sizes) > 1 or len(node.inputs) > MOST_POINTERS:
        return f"it joins {len(node.inputs)} inputs of sizes {sorted(map(str, sizes))}, {_STALE}"
    return None


def _unequal_split(node: ir.Node) -> str | None:
    """Equal parts are taken by arguments, and three parts along the last axis by a kernel of their own."""
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    constant = None if sizes is None else ir.convenience.get_const_tensor(sizes)
    parts = [] if constant is None else constant.numpy().tolist()
    shape = dimensions(node.inputs[0])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    is_three = len(node.outputs) == 3 and (axis == -1 or (shape is not None and axis == len(shape) - 1))
    if (len(set(parts)) > 1 and not is_three) or len(node.outputs) > MOST_POINTERS:
        return f"it splits into {parts or len(node.outputs)}, {_STALE}"
    return None


def _uneven_product(node: ir.Node) -> str | None:
    """One call strides through batches of products where the right side has none, or both have the same."""
    left, right = (dimensions(value) for value in node.inputs[:2])
    if left is None or right is None or len(right) <= 2:
        return None
    if len(left) <= 2 or left[:-2] != right[:-2]:
        return f"it multiplies {list(left)} by {list(right)}, batches that broadcast, {_STALE}"
    return None


_STALE_COPIES = {
    ("", "Concat"): _unequal_concat,
    ("", "Split"): _unequal_split,
    ("", "MatMul"): _uneven_product,
    (CONTRIB_DOMAIN, "FusedMatMul"): _uneven_product,
}


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)
