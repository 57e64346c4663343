"""Passes: the backbone in 16-bit floats; what follows it, and what positions alone decide, stays in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_ir as ir

from poolgraph.errors import ExportError, Float16RangeError
from poolgraph.graphs.cuda_kernels import CUDA_KERNELS
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.pattern import BACKBONE_PREFIX, add_lazy_weight, dimensions

FLOAT: Final = ir.DataType.FLOAT

HALF_TYPES: Mapping[str, ir.DataType] = MappingProxyType({"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16})
"""The types of the backbone's rows by precision."""

PRECISE: Final = frozenset(
    {"Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Exp", "Log", "Cos", "Sin", "LinearAttention", "Cast"}
)
"""Operators that are computed in float32 wherever they stand: squares and sums soon leave float16's range; a Cast says
itself what it makes."""

FEEDING: Final = frozenset({"Expand", "Mul", "Reshape", "Unsqueeze"})
"""Operators that are computed in float32 too where nothing but float32 reads them: what a scan is fed with is the
product of two rows, which no probe sees, and would be rounded for nothing."""

MOVING: Final = frozenset(
    {
        *("Concat", "Expand", "Gather", "GatherElements", "Identity", "Pad"),
        *("Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Operators whose results are numbers of their inputs: what leaves the range behind them is what did before them."""

SHAPES: Final = frozenset({"Shape", "Size"})
"""Operators that read no numbers, and so take rows as they are."""

_BOOLEAN: Final = frozenset({"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not"})
_TYPED_BY_SECOND: Final = frozenset({"Where"})


def convert_floats(precision: str, kept: Collection[str] = ()) -> Pass:
    """Return the pass that computes the backbone in ``precision``.

    Given:   %h = LayerNormalization(%x, %w, %b);  %y = ReduceSum(%h) of the pooling
    Result:  %h = LayerNormalization(%x', %w', %b') in float16;  %y = ReduceSum(Cast(%h, float32))

    The backbone is every node that a weight of it is read by, or still to come behind: all before the pooling. Masks
    and rotary angles, which come from integers alone, are computed in float32 and cast where they meet rows. So is what
    CUDA has a kernel for in float32 alone: of bfloat16 there is no Pad, for one, and no TopK.

    Args:
        precision: ``fp16`` or ``bf16``.
        kept: Names of values that leave the range of the type: what computes and what reads them stays in float32.

    Raises:
        ExportError: when weights are read, one that is beyond the range of the type; Float16RangeError of fp16's.
    """
    dtype = HALF_TYPES[precision]

    def convert_to_half(model: ir.Model) -> int:
        nodes = _half_nodes(model, dtype, kept)
        if not nodes or any(value.dtype is dtype for node in nodes for value in node.outputs):
            return 0
        _Conversion(model.graph, dtype, nodes).apply()
        return len(nodes)

    convert_to_half.__name__ = f"convert_to_{precision}"
    return convert_to_half


def row_values(model: ir.Model) -> list[ir.Value]:
    """List the values that are computed in float16, in order."""
    types = _Types()
    for node in model.graph:
        types.infer(node)
    nodes = _half_nodes(model, ir.DataType.FLOAT16)
    return [value for node in model.graph if node in nodes for value in node.outputs if types.is_float(value)]


def backbone_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that read a weight of the backbone, and those that lead to one."""
    needed: set[ir.Node] = set()
    for node in reversed(list(graph)):
        leads_on = any(use.node in needed for value in node.outputs for use in value.uses())
        if leads_on or any(_is_backbone_weight(value) for value in node.inputs):
            needed.add(node)
    return needed


def _is_backbone_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and str(value.name).startswith(BACKBONE_PREFIX)


def _half_nodes(model: ir.Model, dtype: ir.DataType, kept: Collection[str] = ()) -> set[ir.Node]:
    """Return the nodes that compute with the backbone's rows, apart from those that stay in float32."""
    backbone = backbone_nodes(model.graph)
    types = _Types()
    kept = _with_moved(model.graph, kept)
    rows: set[ir.Node] = set()
    for node in model.graph:
        types.infer(node)
        if node in backbone and _computes_rows(node, rows, types):
            rows.add(node)
    half = {node for node in rows if _has_half_kernel(node, dtype) and not _touches(node, kept)}
    for node in reversed(list(model.graph)):
        if node in half and node.op_type in FEEDING and _feeds_float32(node, half):
            half.remove(node)
    return half


def _feeds_float32(node: ir.Node, half: Collection[ir.Node]) -> bool:
    readers = [use.node for value in node.outputs for use in value.uses()]
    is_returned = any(value.is_graph_output() for value in node.outputs)
    return bool(readers) and not is_returned and not any(reader in half for reader in readers)


def _has_half_kernel(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether CUDA computes a node in ``dtype``; where it can in neither type, ``check_cuda`` says so."""
    kernel = CUDA_KERNELS.get((node.domain, node.op_type))
    is_lacking = kernel is not None and dtype not in kernel.types and FLOAT in kernel.types
    return node.op_type not in PRECISE and not is_lacking


def _with_moved(graph: ir.Graph, names: Collection[str]) -> set[str]:
    """Return values and what their numbers are moved to, which has names of its own in each target's graph."""
    found = set(names)
    for node in graph:
        if node.op_type in MOVING and found.intersection(str(value.name) for value in node.inputs if value is not None):
            found.update(str(value.name) for value in node.outputs)
    return found


def _touches(node: ir.Node, names: Collection[str]) -> bool:
    """Whether a node makes or reads one of some values: read in 16 bits, what is beyond them would be infinite."""
    return any(value is not None and str(value.name) in names for value in (*node.inputs, *node.outputs))


def _computes_rows(node: ir.Node, rows: Collection[ir.Node], types: _Types) -> bool:
    floats = [value for value in node.inputs if value is not None and types.is_float(value)]
    if not floats or not any(types.is_float(value) for value in node.outputs):
        return False
    makers = [maker for value in floats if (maker := value.producer()) is not None]
    if any(maker in rows for maker in makers):
        return True
    return not makers and any(_is_backbone_weight(value) for value in floats)


@dataclass(slots=True)
class _Types:
    """Which values are floats; the tracer leaves some without a type."""

    _floats: dict[ir.Value, bool] = field(default_factory=dict)

    def is_float(self, value: ir.Value) -> bool:
        if value.name == "":  # an output that the node does not have
            return False
        if value.dtype is not None:
            return value.dtype is FLOAT
        return self._floats.get(value, False)

    def infer(self, node: ir.Node) -> None:
        found = self._of_node(node)
        for value in node.outputs:
            if value.dtype is None:
                self._floats[value] = found

    def _of_node(self, node: ir.Node) -> bool:
        if node.op_type == "Cast":
            return node.attributes["to"].as_int() == FLOAT
        if node.op_type in _BOOLEAN or node.op_type in SHAPES or not node.inputs:
            return False
        first = node.inputs[1 if node.op_type in _TYPED_BY_SECOND else 0]
        return first is not None and self.is_float(first)


def _narrow(numbers: np.ndarray, dtype: ir.DataType, name: str) -> np.ndarray:
    """Return numbers in 16 bits; a constant of the graph such as the least of all floats becomes the least there is.

    Other numbers are weights, also under names that the tracer gave to what was computed of the model's.

    Raises:
        ExportError: a weight of the model that the type has no finite number for; Float16RangeError if that is fp16.
    """
    with np.errstate(over="ignore"):
        narrow = numbers.astype(dtype.numpy())
    lost = np.isfinite(numbers) & ~np.isfinite(narrow.astype(np.float32))
    if not lost.any():
        return narrow
    is_mark = numbers.size == 1 or np.abs(numbers[lost]).min() == np.finfo(np.float32).max
    if is_mark and not name.startswith(BACKBONE_PREFIX):
        largest = dtype.max
        return np.clip(numbers, -largest, largest, where=lost, out=numbers.copy()).astype(dtype.numpy())
    reason = (
        f"the weight {name} has {int(lost.sum())} numbers beyond the range of {dtype.name.lower()} (up to "
        f"{np.abs(numbers[lost]).max():,.0f})"
    )
    if dtype == ir.DataType.FLOAT16:
        raise Float16RangeError(reason, "export with --precision bf16, or fp32")
    raise ExportError(f"{reason}; export with --precision fp32")


class _Conversion:
    """The conversion of one graph."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType, nodes: Collection[ir.Node]) -> None:
        self._graph, self._dtype, self._nodes = graph, dtype, nodes
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._types = _Types()

    def apply(self) -> None:
        """Give every node its inputs in the type that it reads, by casts where that is not the one they have."""
        order = list(self._graph)
        for node in order:
            self._types.infer(node)
        floats = {value for node in order for value in node.outputs if self._types.is_float(value)}
        for node in order:
            if node.op_type in SHAPES:
                continue
            wanted = self._dtype if node in self._nodes else FLOAT
            for index, value in enumerate(node.inputs):
                if value is not None and (value in floats or self._is_stored_float(value)):
                    node.replace_input_with(index, self._as(value, wanted))
        for value in list(self._graph.outputs):
            if value in floats and value.producer() in self._nodes:
                self._return_as_float(value)
        for value in floats:
            if value.producer() in self._nodes:
                value.type = ir.TensorType(self._dtype)

    def _is_stored_float(self, value: ir.Value) -> bool:
        return value.is_initializer() and value.dtype is FLOAT

    def _as(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """Return ``value`` in the type that a node reads."""
        if value.is_initializer():
            return value if wanted is FLOAT else self._weight(value)
        has = self._dtype if value.producer() in self._nodes else FLOAT
        if has is wanted:
            return value
        if (value, wanted) not in self._casts:
            self._casts[value, wanted] = self._cast(value, wanted)
        return self._casts[value, wanted]

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": wanted})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(wanted)
        maker = value.producer()
        assert maker is not None
        self._graph.insert_after(maker, cast)
        return cast.outputs[0]

    def _weight(self, value: ir.Value) -> ir.Value:
        tensor, dtype = value.const_value, self._dtype
        assert tensor is not None
        shape, name = tuple(int(size) for size in dimensions(value) or ()), str(value.name)

        def load() -> np.ndarray:
            return _narrow(tensor.numpy(), dtype, name)

        return add_lazy_weight(self._graph, f"{value.name}.{dtype.name.lower()}", dtype, shape, load)

    def _return_as_float(self, value: ir.Value) -> None:
        """Return a row of the backbone, which is in 16 bits, as float32 under the same name."""
        cast = self._cast(value, FLOAT)
        name, value.name = value.name, f"{value.name}.half"
        cast.name = name
        outputs = self._graph.outputs
        outputs[list(outputs).index(value)] = cast
