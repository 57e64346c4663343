"""What torch's ONNX exporter need not do: decompose programs that it translates as they are, and build its table anew.

``torch.onnx.export`` traces every program a second time to decompose the operators that it cannot translate. That takes
twice as long as the first trace, and where it can translate them all it changes nothing but casts and assertions. Then
it computes every operator a third time, to learn which arguments it has to cast: the trace has noted what that needs.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.onnx import OnnxExporterError, ONNXProgram

from poolgraph.export.spare_notes import code_on_demand, replaced

_ATEN = torch.ops.aten

CASTS = frozenset({_ATEN.to.dtype, _ATEN.to.device, _ATEN.to.dtype_layout, _ATEN.lift_fresh_copy.default})
"""What decomposition turns into a copy, or into nothing where the value has that type already."""

UNTRACKED = frozenset({_ATEN.detach_.default})
"""What concerns gradients alone: it changes no number, though it counts as writing."""

ASSERTIONS = frozenset({_ATEN._assert_tensor_metadata.default})
"""What the exporter drops."""

TRANSLATED = frozenset(
    {
        torch.ops.onnx_symbolic._symbolic.default,
        *(operator.getitem, operator.add, operator.sub, operator.mul, operator.neg),
        *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.neg.default, _ATEN.abs.default),
        *(_ATEN.pow.Tensor_Scalar, _ATEN.pow.Tensor_Tensor, _ATEN.sqrt.default, _ATEN.rsqrt.default, _ATEN.exp.default),
        *(_ATEN.log1p.default, _ATEN.maximum.default),
        *(_ATEN.cos.default, _ATEN.sin.default, _ATEN.clamp.default, _ATEN.clamp_min.default),
        *(_ATEN.linear.default, _ATEN.addmm.default, _ATEN.matmul.default, _ATEN.conv1d.default),
        *(_ATEN.embedding.default, _ATEN.layer_norm.default, _ATEN.dropout.default, _ATEN.softmax.int),
        *(_ATEN.gelu.default, _ATEN.silu.default, _ATEN.relu.default, _ATEN.sigmoid.default, _ATEN.tanh.default),
        *(_ATEN.mean.dim, _ATEN.sum.dim_IntList, _ATEN.amax.default, _ATEN.amin.default, _ATEN.cumsum.default),
        *(_ATEN.linalg_vector_norm.default, _ATEN.topk.default),
        *(
            _ATEN.eq.Scalar,
            _ATEN.eq.Tensor,
            _ATEN.ne.Scalar,
            _ATEN.gt.Scalar,
            _ATEN.gt.Tensor,
            _ATEN.ge.Scalar,
            _ATEN.ge.Tensor,
            _ATEN.le.Scalar,
            _ATEN.lt.Scalar,
            _ATEN.lt.Tensor,
            _ATEN.logical_and.default,
            _ATEN.logical_not.default,
            _ATEN.where.self,
            _ATEN.where.ScalarOther,
            _ATEN.where.ScalarSelf,
        ),
        *(_ATEN.masked_fill.Scalar, _ATEN.type_as.default),
        *(_ATEN.arange.default, _ATEN.arange.start, _ATEN.zeros.default, _ATEN.ones.default, _ATEN.zeros_like.default),
        *(_ATEN.ones_like.default, _ATEN.full_like.default, _ATEN.sym_size.int),
        *(
            _ATEN.view.default,
            _ATEN.reshape.default,
            _ATEN.flatten.using_ints,
            _ATEN.unflatten.int,
            _ATEN.clone.default,
        ),
        *(_ATEN.transpose.int, _ATEN.permute.default, _ATEN.unsqueeze.default, _ATEN.squeeze.dim, _ATEN.pad.default),
        *(
            _ATEN.expand.default,
            _ATEN.expand_as.default,
            _ATEN.cat.default,
            _ATEN.stack.default,
            _ATEN.chunk.default,
            _ATEN.unbind.int,
        ),
        *(_ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.slice.Tensor, _ATEN.select.int),
        *(
            _ATEN.index.Tensor,
            _ATEN.index_select.default,
            _ATEN.gather.default,
            _ATEN.scatter.src,
            _ATEN.repeat_interleave.self_int,
        ),
    }
)
"""Operators that torch's exporter has a translation of; none writes to its inputs. One that is missing here only costs
time."""


def translate(program: ExportedProgram, **options: Any) -> ONNXProgram | None:
    """Do as ``torch.onnx.export``, by the short way where there is one."""
    with shared_registry(), noted_values():
        if spare_second_trace(program):
            # Without a translation, the long way, which runs the program.
            with contextlib.suppress(OnnxExporterError), _no_decompositions(), code_on_demand():
                return torch.onnx.export(program, **options)
            del program.run_decompositions
        return torch.onnx.export(program, **options)


def spare_second_trace(program: ExportedProgram) -> bool:
    """Make ``torch.onnx.export`` take ``program`` as it is, where that gives the same graph.

    Returns:
        Whether it does. Where an operator is not known to be translated, the program is left alone.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    if not all(node.target in TRANSLATED | CASTS | UNTRACKED for node in nodes):
        return False
    for node in nodes:
        if node.target in CASTS | UNTRACKED:
            _decompose_cast(node, program)
    program.graph_module.recompile()
    program.run_decompositions = lambda decomp_table=None: program
    return True


def _decompose_cast(node: Node, program: ExportedProgram) -> None:
    """Do as decomposition does."""
    (source, *_), dtype = node.all_input_nodes, node.meta["val"].dtype
    if dtype != source.meta["val"].dtype:
        node.target, node.args, node.kwargs = _ATEN._to_copy.default, (source,), {"dtype": dtype}
        return
    program.graph_signature.replace_all_uses(node.name, source.name)
    node.replace_all_uses_with(source)
    program.graph.erase_node(node)


_REGISTRIES: dict[int, Any] = {}
"""Torch's translations by opset; only read once they are built."""


@contextlib.contextmanager
def shared_registry() -> Iterator[None]:
    """Within, torch's exporter builds its table of translations once a process: it takes as long as a small trace."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # a private place: where it has moved, traces only take longer
        yield
        return
    original = ONNXRegistry.__dict__["from_torchlib"]

    def find(opset_version: int) -> Any:
        if opset_version not in _REGISTRIES:
            _REGISTRIES[opset_version] = original.__func__(ONNXRegistry, opset_version)
        own = copy.copy(_REGISTRIES[opset_version])
        own.functions = {name: list(found) for name, found in own.functions.items()}  # an export adds translations
        return own

    with replaced(ONNXRegistry, "from_torchlib", staticmethod(find)):
        yield


@contextlib.contextmanager
def noted_values() -> Iterator[None]:
    """Within, torch's exporter casts arguments by the values that the trace has noted, and computes what it changes."""
    try:
        from torch.onnx._internal.fx.passes import type_promotion

        interpreter: Any = type_promotion._TypePromotionInterpreter
        original, promote, find_rule = (
            interpreter.run_node,
            interpreter._maybe_promote_node,
            type_promotion.get_type_promotion_rule,
        )
    except (ImportError, AttributeError):  # another torch, which then does all of its work
        yield
        return

    def run(self: Any, node: Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return original(self, node)
        with self._set_current_node(node):
            if rule := find_rule(node, self.type_promotion_table):
                promote(self, node, rule)  # notes the new value of a node that it changes
        return node.meta["val"]

    with replaced(interpreter, "run_node", run):
        yield


@contextlib.contextmanager
def _no_decompositions() -> Iterator[None]:
    """Within, torch's exporter does not collect the decompositions of all operators."""
    try:
        from torch.onnx._internal.exporter import _decomp
    except ImportError:
        yield
        return
    with replaced(_decomp, "create_onnx_friendly_decomposition_table", lambda _: {}):
        yield
