"""Graphs with operators that only CUDA's kernels run, evaluated in numpy: what those kernels would answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import cuda_attention
import cuda_norms
import cuda_products
import cuda_recurrence
import cuda_rotary
import numpy as np
import onnx
import onnx_ir as ir
from cuda_operator import ContribOp, widened
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun, RuntimeContextError
from onnx.reference.ops import load_op

FAMILIES = (cuda_attention, cuda_norms, cuda_products, cuda_recurrence, cuda_rotary)
OPERATORS: tuple[type[ContribOp], ...] = tuple(operator for family in FAMILIES for operator in family.OPERATORS)
KNOWN = frozenset((operator.op_domain, operator.__name__) for operator in OPERATORS)
NOT_WIDENED = frozenset({"Cast", "Constant", "If", "Loop", "Scan"})
"""Standard operators that run as they are: their answer's type does not follow from their inputs'."""


class UnknownOperatorError(Exception):
    """The graph has operators that are neither standard nor in OPERATORS."""


def run_reference(
    model: ir.Model | onnx.ModelProto | str | Path, feeds: Mapping[str, np.ndarray], *, poison: bool = True
) -> dict[str, np.ndarray]:
    """Evaluate a graph, each operator in float32 and rounded to the graph's type; outputs by name.

    Args:
        model: The graph, or its file, beside which its weights may lie.
        feeds: Its inputs by name.
        poison: Rows that a kernel leaves undefined are loud garbage, which must not reach an answer. Rows behind the
            texts of PackedMultiHeadAttention are NaN in any case, as nothing ever writes them.

    Raises:
        UnknownOperatorError: An operator has no implementation here.
        ValueError: An operator is used in a way that its kernel refuses, or runs slowly.
    """
    proto = name_outputs(read_proto(model))
    unknown = sorted(
        {f"{domain or 'ai.onnx'}::{name}" for domain, name in _operators(proto.graph) if _is_new(domain, name)}
    )
    if unknown:
        raise UnknownOperatorError(f"no numpy implementation of {', '.join(unknown)}; known: {sorted(KNOWN)}")
    missing = {value.name for value in proto.graph.input} - feeds.keys() - {it.name for it in proto.graph.initializer}
    if missing or feeds.keys() - {value.name for value in proto.graph.input}:
        raise ValueError(f"feeds {sorted(feeds)} for the inputs {[value.name for value in proto.graph.input]}")
    with np.errstate(all="ignore"):  # garbage may overflow and NaN spreads: that is what it is for
        values = ReferenceEvaluator(proto, new_ops=list(_new_operators(proto, poison))).run(None, dict(feeds))
    return dict(zip((value.name for value in proto.graph.output), values, strict=True))


def read_proto(model: ir.Model | onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """A model as a message that holds its weights."""
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, ir.Model):
        return onnx.load(str(model))
    proto = ir.to_proto(model)
    for initializer in proto.graph.initializer:
        if onnx.external_data_helper.uses_external_data(initializer):
            array = model.graph.initializers[initializer.name].const_value.numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    return proto


def name_outputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Name the outputs that nothing reads: the evaluator hands one without a name to every input without a name."""
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    for index, node in enumerate(named.graph.node):
        for place, name in enumerate(node.output):
            node.output[place] = name or f"unread_{index}_{place}"
    return named


def _operators(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    for node in graph.node:
        yield ("" if node.domain == "ai.onnx" else node.domain), node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _operators(attribute.g)


def _is_new(domain: str, name: str) -> bool:
    return (domain, name) not in KNOWN and (domain != "" or not onnx.defs.has(name))


def _new_operators(proto: onnx.ModelProto, poison: bool) -> Iterable[type[OpRun]]:
    version = next(it.version for it in proto.opset_import if it.domain in ("", "ai.onnx"))
    for domain, name in dict.fromkeys(_operators(proto.graph)):
        if (domain, name) in KNOWN:
            yield _poisoned(domain, name, poison)
        elif name not in NOT_WIDENED and (operator := _widened(name, version)) is not None:
            yield operator


@cache
def _poisoned(domain: str, name: str, poison: bool) -> type[OpRun]:
    operator = next(it for it in OPERATORS if (it.op_domain, it.__name__) == (domain, name))
    return type(name, (operator,), {"poison": poison})


class GatherElements(OpRun):
    """onnx's own chooses among at most 64 rows."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis=axis),)


REPLACED = {"GatherElements": GatherElements}


@cache
def _widened(name: str, version: int) -> type[OpRun] | None:
    try:
        operator = widened(REPLACED.get(name) or load_op("", name, version))
    except RuntimeContextError:  # a function of other operators, which the evaluator takes apart
        return None
    operator.__name__ = name  # load_op gives Name_Version, by which the evaluator would not find it
    return operator
