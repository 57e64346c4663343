"""Binding: initializers, known by parameter name, to the checkpoint's tensors, which are read when they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head import StoredTensor
from poolgraph.export.layouts import Weights
from poolgraph.graphs.pattern import BACKBONE_PREFIX

HEAD_PREFIX = "head."

OLD_SUFFIXES = ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta"))
"""Names that TensorFlow-era checkpoints use for the same tensors."""


def bind_weights(model: ir.Model, backbone: Weights, base_prefix: str, head: Mapping[str, StoredTensor]) -> int:
    """Give every initializer that is a parameter its tensor in the checkpoint.

    Args:
        model: A traced graph.
        backbone: The backbone's tensors, under transformers' names.
        base_prefix: Prefix that a checkpoint of a larger model puts before the backbone's names, as in ``bert.``.
        head: Where the head's parameters are stored, by their names.

    Returns:
        How many were bound.

    Raises:
        ExportError: tensors that the checkpoint lacks, all named, or that have another shape.
    """
    graph = model.graph
    missing: list[str] = []
    bound = 0
    folders: dict[Path, Weights] = {}
    for name, value in list(graph.initializers.items()):
        if not name.startswith((BACKBONE_PREFIX, HEAD_PREFIX)) or _is_buffer(value):
            continue
        if name in head:
            folder = folders.setdefault(head[name].folder, WeightFolder(head[name].folder))
            stored = head[name]
        else:
            folder, found = backbone, find_tensor(name, backbone, base_prefix)
            if found is None:
                missing.append(name)
                continue
            stored = StoredTensor(folder=backbone.folder, name=found)
        value.const_value = _lazy_tensor(name, value, folder, stored)
        bound += 1
    if missing:
        raise ExportError(f"the checkpoint lacks {len(missing)} tensors of the model: {', '.join(missing)}")
    return bound


def _is_buffer(value: ir.Value) -> bool:
    """Buffers were traced with their real content."""
    raw = getattr(value.const_value, "raw", None)
    return isinstance(raw, torch.Tensor) and type(raw) in (torch.Tensor, torch.nn.Buffer)


def find_tensor(name: str, backbone: Weights, base_prefix: str) -> str | None:
    """Return the checkpoint's name of a backbone parameter, None where it has none."""
    plain = name.removeprefix(BACKBONE_PREFIX)
    spellings = [plain, *(plain.replace(new, old) for new, old in OLD_SUFFIXES if plain.endswith(new))]
    spellings += [
        f"LayerNorm.{old}" for new, old in (("weight", "gamma"), ("bias", "beta")) if plain == f"LayerNorm.{new}"
    ]
    candidates = [prefix + spelling for spelling in spellings for prefix in ("", f"{base_prefix}.")]
    return next((candidate for candidate in candidates if candidate in backbone.names), None)


def _lazy_tensor(name: str, value: ir.Value, folder: Weights, stored: StoredTensor) -> ir.LazyTensor:
    expected = tuple(value.shape.numpy()) if value.shape is not None else None

    def load() -> ir.TensorProtocol:
        tensor = stored.load(folder)
        if tuple(tensor.shape) != expected:
            raise ExportError(
                f"{stored.name} has shape {tuple(tensor.shape)} in the checkpoint, the model needs {expected}"
            )
        array: np.ndarray = tensor.numpy()
        return ir.tensor(np.ascontiguousarray(array), name=name)

    assert value.shape is not None
    return ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
