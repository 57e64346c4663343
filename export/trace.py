"""Tracing: a pooling module under fake parameters to a graph with semantic ops and dynamic axes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from poolgraph.errors import ExportError
from poolgraph.export.semantic import SEMANTIC_DOMAIN
from poolgraph.graphs.families import OUTPUT_NAMES, AnswerKind
from poolgraph.poolers.head import Head
from poolgraph.poolers.layout import Layout, PaddedLayout, UniformLayout
from poolgraph.poolers.pooling import Pooling
from poolgraph.tasks import GraphFamily

OPSET_VERSION = 20
"""Has Gelu and LayerNormalization; at most 21, so that the portable graph loads in other runtimes."""

ENTRY_PREFIX = "module."
"""What the entry modules put before the names of the pooling module's parameters."""

BATCH_AXIS, SEQUENCE_AXIS = "batch_size", "sequence_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceInputs:
    """Which inputs the traced graphs have beyond ``input_ids`` and the layout's own."""

    token_type_ids: bool
    prompt_length: bool
    attended_mask: bool = False


class PoolingModule(nn.Module):
    """Backbone, pooling and head as one module.

    Args:
        backbone: A transformers model that returns ``last_hidden_state``.
        pooling: Token rows to one vector a text; None where there is only the token family.
        head: What follows the pooling.
        kind: What the answers are.
        position_offset: pad_token_id where positions are counted from pad_token_id + 1, else None.
        has_token_types: Whether the backbone takes token types.
        head_takes_rows: Whether the head also fits the backbone's token rows.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pooling: Pooling | None,
        head: Head,
        *,
        kind: AnswerKind,
        position_offset: int | None,
        has_token_types: bool,
        head_takes_rows: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.pooling, self.head, self.kind = backbone, pooling, head, kind
        self.position_offset = position_offset
        self.has_token_types = has_token_types
        self.head_takes_rows = head_takes_rows

    def forward(
        self,
        layout: Layout,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        attended_mask: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the values that ``output_names`` names, (batch_size, size) or (batch_size, sequence_length, size)."""
        arguments: dict[str, Any] = {"position_ids": self._position_ids(layout, input_ids, attention_mask)}
        if self.has_token_types:
            arguments["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        seen = attention_mask if attended_mask is None else attended_mask
        rows = self.backbone(input_ids=input_ids, attention_mask=seen, **arguments).last_hidden_state
        results = []
        if self.pooling is not None:
            results.append(self.head.forward_pooled(self.pooling(layout, rows)))
        if self.head_takes_rows:
            results.append(self.head(rows.float()))
        return tuple(value for raw, done in results for value in ((raw, done) if self.head.normalize else (raw,)))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Raw and finished value of each family, the finished one alone where they are the same."""
        present: dict[GraphFamily, bool] = {"sequence": self.pooling is not None, "token": self.head_takes_rows}
        first = 0 if self.head.normalize else 1
        return tuple(name for family in present if present[family] for name in OUTPUT_NAMES[self.kind, family][first:])

    def _position_ids(self, layout: Layout, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.position_offset is None:
            return layout.position_ids(input_ids)
        # fairseq's make_positions: padding tokens stay at pad_token_id and do not count, also inside a text.
        counted = input_ids.ne(self.position_offset).long()
        if attention_mask is not None:
            counted = counted * attention_mask
        return counted.cumsum(1) * counted + self.position_offset


class _PaddedEntry(nn.Module):
    """The graph's signature in the padded layout."""

    def __init__(self, module: PoolingModule) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_length: Tensor | None = None,
        attended_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        layout = PaddedLayout(attention_mask=attention_mask, prompt_length=prompt_length)
        result: tuple[Tensor, ...] = self.module(layout, input_ids, attention_mask, token_type_ids, attended_mask)
        return result


class _UniformEntry(nn.Module):
    """The graph's signature in the uniform layout."""

    def __init__(self, module: PoolingModule) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_length: Tensor | None = None,
        attended_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        layout = UniformLayout(prompt_length=prompt_length)
        result: tuple[Tensor, ...] = self.module(layout, input_ids, None, token_type_ids, attended_mask)
        return result


ENTRIES: dict[str, Callable[[PoolingModule], nn.Module]] = {"padded": _PaddedEntry, "uniform": _UniformEntry}


def trace_module(module: PoolingModule, layout: str, inputs: TraceInputs, max_length: int) -> ir.Model:
    """Trace ``module`` in one layout.

    Args:
        module: Its parameters may be fake: the graph's initializers carry their names, not their values.
        layout: A key of ENTRIES.
        inputs: Which optional inputs the graph has.
        max_length: Longest sequence in tokens.

    Returns:
        A model of semantic and standard ops at OPSET_VERSION; inputs, outputs and axes named for the runtime,
        initializers by their parameters.

    Raises:
        ExportError: torch cannot trace the module; the cause says where.
    """
    arguments, dynamic_shapes = _example_inputs(layout, inputs, max_length)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                ENTRIES[layout](module), (), kwargs=arguments, dynamic_shapes=dynamic_shapes, strict=False
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=OPSET_VERSION,
                custom_opsets={SEMANTIC_DOMAIN: 1},
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"the model cannot be traced in the {layout} layout: {type(error).__name__}: {error}"
        ) from error
    assert exported is not None
    model: ir.Model = exported.model
    _name_interface(model, tuple(arguments), module.output_names)
    return model


def _example_inputs(layout: str, inputs: TraceInputs, max_length: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    batch, length = 2, min(7, max_length)
    axes = {0: torch.export.Dim(BATCH_AXIS), 1: torch.export.Dim(SEQUENCE_AXIS, max=max_length)}
    matrices = ["input_ids"]
    if layout == "padded":
        matrices.append("attention_mask")
    if inputs.token_type_ids:
        matrices.append("token_type_ids")
    if inputs.attended_mask:
        matrices.append("attended_mask")
    arguments = {name: torch.ones(batch, length, dtype=torch.int64) for name in matrices}
    shapes: dict[str, Any] = dict.fromkeys(matrices, axes)
    if inputs.prompt_length:
        arguments["prompt_length"] = torch.ones(batch, dtype=torch.int64)
        shapes["prompt_length"] = {0: axes[0]}
    return arguments, shapes


def _name_interface(model: ir.Model, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> None:
    """Name inputs, outputs and dynamic axes for the runtime, and initializers by the pooling module's parameters."""
    graph = model.graph
    axis_names: dict[str | None, str] = {}
    for value, name in zip(graph.inputs, input_names, strict=True):
        value.name = name
        assert value.shape is not None
        for dimension, axis in zip(value.shape, (BATCH_AXIS, SEQUENCE_AXIS), strict=False):
            axis_names[str(dimension)] = axis
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name
    for value in list(graph.initializers.values()):
        graph.initializers.pop(str(value.name))
        value.name = str(value.name).removeprefix(ENTRY_PREFIX)
        graph.register_initializer(value)
    for node in graph:
        for value in node.outputs:
            _rename_axes(value, axis_names)
    for value in graph.inputs:
        _rename_axes(value, axis_names)


def _rename_axes(value: ir.Value, names: dict[str | None, str]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([names.get(str(d), d) if not isinstance(d, int) else d for d in value.shape])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about packages that this project does not use."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def fake_parameters() -> Iterator[None]:
    """Within, parameters of new modules have a shape and a dtype but no memory; buffers are real.

    Tracing needs no weights, so a checkpoint of any size is traced in a few hundred megabytes.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            with mode:
                parameter = nn.Parameter(torch.empty(parameter.shape, dtype=torch.float32), requires_grad=False)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
