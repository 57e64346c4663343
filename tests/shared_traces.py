"""One trace for equal modules: what is traced is a module without weights, so equal modules have equal graphs.

For tests of what comes behind the trace: the checkpoints of many of them differ in weights, or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import pytest
from torch import nn

from poolgraph.export import build
from poolgraph.export.pooling_module import PoolingModule
from poolgraph.export.trace import TraceInputs, trace_module

Trace = Callable[[PoolingModule, str, TraceInputs, int], ir.Model]

SHOWN = (bool, int, float, str, tuple, list, type(None))

PATHS = ("name_or_path", "_name_or_path")
"""Where a checkpoint lies."""

_TRACED: dict[str, ir.Model] = {}
"""Of this process, by all that a trace reads; never handed out themselves."""


def describe_module(module: PoolingModule) -> list[Any]:
    """Everything of a module that its trace may depend on: classes, attributes, functions, shapes, buffers, config."""
    config = module.backbone.config.to_dict()
    parts: list[Any] = [sorted((key, repr(value)) for key, value in config.items() if key not in PATHS)]
    for name, part in module.named_modules():
        own = [(key, _show(value)) for key, value in vars(part).items() if not isinstance(value, dict)]
        parts.append((name, _name(type(part)), sorted(it for it in own if it[0] not in PATHS)))
    parts += [(name, tuple(value.shape), str(value.dtype)) for name, value in module.named_parameters()]
    parts += [(name, hashlib.sha256(it.numpy().tobytes()).hexdigest()) for name, it in module.named_buffers()]
    return parts


def _show(value: object) -> str:
    if isinstance(value, SHOWN):
        return repr(value)
    if isinstance(value, nn.Module) or not callable(value):
        return _name(type(value))
    return _name(value)


def _name(it: Any) -> str:
    return f"{getattr(it, '__module__', '')}.{getattr(it, '__qualname__', type(it).__qualname__)}"


def trace_once(module: PoolingModule, layout: str, inputs: TraceInputs, max_length: int) -> ir.Model:
    """Do as ``trace_module``, once for all equal modules."""
    key = repr((layout, inputs, max_length, describe_module(module)))
    if key not in _TRACED:
        _TRACED[key] = trace_module(module, layout, inputs, max_length)
    return _TRACED[key].clone()


@contextmanager
def shared_traces() -> Iterator[None]:
    """Within, exports of equal modules share a trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "trace_module", trace_once)
        yield
