"""Tracing: a pooling module under fake parameters to a graph with semantic ops and dynamic axes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import INT64, opset20
from torch import nn

from poolgraph.errors import ExportError
from poolgraph.export.direct_program import translate
from poolgraph.export.known_shapes import known_shapes
from poolgraph.export.ordered_sets import ordered_sets
from poolgraph.export.pooling_module import (
    BATCH_AXIS,
    BOUNDS_AXIS,
    ENTRIES,
    Entry,
    PoolingModule,
)
from poolgraph.export.spare_notes import code_on_demand, spared_notes
from poolgraph.graphs.fuse_rotary import MAX_LENGTH_NOTE
from poolgraph.graphs.pattern import SEMANTIC_DOMAIN, SEQUENCE_AXIS, TOKENS_AXIS

OPSET_VERSION = 20
"""Has Gelu and LayerNormalization; at most 21, so that the portable graph loads in other runtimes."""

ONE_MORE = " + 1"
"""End of the name of an axis that has one more than another."""

ENTRY_PREFIX = "module."
"""What the entry modules put before the names of the pooling module's parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceInputs:
    """Which inputs the traced graphs have beyond ``input_ids`` and the layout's own."""

    token_type_ids: bool
    prompt_length: bool
    attended_mask: bool = False


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
    entry = ENTRIES[layout]
    axes, dimensions = _input_axes(entry, inputs), _dimensions(max_length)
    arguments = {
        name: torch.ones([dimensions[axis][0] for axis in of_input], dtype=torch.int64)
        for name, of_input in axes.items()
    }
    dynamic_shapes = {
        name: {index: dimensions[axis][1] for index, axis in enumerate(of_input)} for name, of_input in axes.items()
    }
    try:
        with _quiet(), torch.no_grad(), spared_notes():
            with known_shapes(), code_on_demand(), ordered_sets(module.backbone):
                program = torch.export.export(
                    entry.module(module), (), kwargs=arguments, dynamic_shapes=dynamic_shapes, strict=False
                )
            exported = translate(
                program,
                dynamo=True,
                optimize=False,
                opset_version=OPSET_VERSION,
                custom_opsets={SEMANTIC_DOMAIN: 1},
                custom_translation_table={torch.ops.aten.sym_numel.default: _translate_numel},
                verbose=False,
            )
    except Exception as error:
        where = f"in the {layout} layout{_own_attention(module)}"
        raise ExportError(f"the model cannot be traced {where}: {type(error).__name__}: {error}") from error
    assert exported is not None
    model: ir.Model = exported.model
    _name_interface(model, axes, module.output_names)
    model.metadata_props[MAX_LENGTH_NOTE] = str(max_length)
    return model


def _translate_numel(tensor: INT64) -> INT64:
    """Translate the number of elements, which torch's decomposition of ``index_select`` asks for."""
    return opset20.Size(tensor)


def _own_attention(module: PoolingModule) -> str:
    """Say that the backbone has attention of its own, which is what tracing mostly fails at."""
    backbone = module.backbone
    if getattr(backbone, "_supports_attention_backend", True):
        return ""
    return f" ({type(backbone).__name__} computes attention without transformers' AttentionInterface)"


def _input_axes(entry: Entry, inputs: TraceInputs) -> dict[str, tuple[str, ...]]:
    """Return the graph's inputs with the names of their axes."""
    axes = {"input_ids": entry.token_axes, **entry.own_inputs}
    if inputs.token_type_ids:
        axes["token_type_ids"] = entry.token_axes
    if inputs.attended_mask:
        axes["attended_mask"] = entry.token_axes
    if inputs.prompt_length:
        axes["prompt_length"] = (BATCH_AXIS,)
    return axes


def _dimensions(max_length: int) -> dict[str, tuple[int, Any]]:
    """Return each axis's size in the example, and the dimension that it stands for."""
    batch = torch.export.Dim(BATCH_AXIS)
    return {
        BATCH_AXIS: (2, batch),
        SEQUENCE_AXIS: (min(7, max_length), torch.export.Dim(SEQUENCE_AXIS, max=max_length)),
        TOKENS_AXIS: (5, torch.export.Dim(TOKENS_AXIS)),
        BOUNDS_AXIS: (3, batch + 1),
    }


def _name_interface(model: ir.Model, input_axes: Mapping[str, tuple[str, ...]], output_names: tuple[str, ...]) -> None:
    """Name inputs, outputs and dynamic axes for the runtime, and initializers by the pooling module's parameters."""
    graph = model.graph
    axis_names: dict[str | None, str] = {}
    for value, (name, axes) in zip(graph.inputs, input_axes.items(), strict=True):
        value.name = name
        assert value.shape is not None
        for dimension, axis in zip(value.shape, axes, strict=True):
            axis_names |= {str(dimension): axis, str(dimension).removesuffix(ONE_MORE): axis.removesuffix(ONE_MORE)}
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
