"""One trace for equal modules: what is traced is a module without weights, so equal modules have equal graphs.

For tests of what comes behind the trace: the checkpoints of many of them differ in weights, or not at all. All workers
of a run share them, in a folder of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx._internal.exporter._core import TorchTensor

from poolgraph.export import build
from poolgraph.export.pooling_module import PoolingModule
from poolgraph.export.trace import TraceInputs, trace_module

Trace = Callable[[PoolingModule, str, TraceInputs, int], ir.Model]

SHOWN = (bool, int, float, str, tuple, list, type(None))

PATHS = ("name_or_path", "_name_or_path")
"""Where a checkpoint lies."""


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


def trace_once(folder: Path, module: PoolingModule, layout: str, inputs: TraceInputs, max_length: int) -> ir.Model:
    """Do as ``trace_module``, once for all equal modules of a run, whose traces are in ``folder``."""
    key = repr((layout, inputs, max_length, describe_module(module)))
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.onnx"
    if file.exists():
        return load_trace(file)
    model = trace_module(module, layout, inputs, max_length)
    save_trace(model.clone(), file)
    return model


def save_trace(model: ir.Model, file: Path) -> None:
    """Write a trace, whose parameters have a shape alone; it is there as a whole or not at all."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert isinstance(tensor, TorchTensor)
        if type(tensor.raw) not in (torch.Tensor, nn.Buffer):
            value.const_value = ir.ExternalTensor("none", 0, 0, tensor.dtype, shape=tensor.shape, name=name)
    with NamedTemporaryFile(dir=file.parent, delete=False) as written:
        written.write(ir.to_proto(model).SerializeToString())
    Path(written.name).replace(file)


def load_trace(file: Path) -> ir.Model:
    """Read a trace as ``trace_module`` returns it."""
    model = ir.from_proto(onnx.load_model_from_string(file.read_bytes()))
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if isinstance(tensor, ir.ExternalTensor):
            with FakeTensorMode():
                parameter = torch.empty(tensor.shape.numpy())
        else:
            parameter = torch.from_numpy(tensor.numpy().copy())
        value.const_value = TorchTensor(parameter, name=name)
    return model


@contextmanager
def shared_traces(folder: Path) -> Iterator[None]:
    """Within, exports of equal modules share a trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "trace_module", partial(trace_once, folder))
        yield
