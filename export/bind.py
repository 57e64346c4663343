"""Binding: initializers, known by parameter name, to the checkpoint's tensors, which are read when they are written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import WeightFolder

BACKBONE_PREFIX = "backbone."
HEAD_PREFIX = "head.chain."

OLD_SUFFIXES = ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta"))
"""Names that TensorFlow-era checkpoints use for the same tensors."""

DENSE_SUFFIXES = (
    ("linear.weight", "weight"),
    ("linear.bias", "bias"),
    ("linear.weight", "dense.weight"),
    ("linear.bias", "dense.bias"),
)


def bind_weights(model: ir.Model, backbone: WeightFolder, base_prefix: str, head: Mapping[int, WeightFolder]) -> int:
    """Give every initializer that is a parameter its tensor in the checkpoint.

    Args:
        model: A traced graph.
        backbone: The backbone's tensors.
        base_prefix: Prefix that a checkpoint of a larger model puts before the backbone's names, as in ``bert.``.
        head: The tensors of head modules by their index in the chain.

    Returns:
        How many were bound.

    Raises:
        ExportError: tensors that the checkpoint lacks, all named, or that have another shape.
    """
    graph = model.graph
    missing: list[str] = []
    bound = 0
    for name, value in list(graph.initializers.items()):
        if not name.startswith((BACKBONE_PREFIX, HEAD_PREFIX)) or _is_buffer(value):
            continue
        found = _find(name, backbone, base_prefix, head)
        if found is None:
            missing.append(name)
        else:
            value.const_value = _lazy_tensor(name, value, *found)
            bound += 1
    if missing:
        raise ExportError(f"the checkpoint lacks {len(missing)} tensors of the model: {', '.join(missing)}")
    return bound


def _is_buffer(value: ir.Value) -> bool:
    """Buffers were traced with their real content."""
    raw = getattr(value.const_value, "raw", None)
    return isinstance(raw, torch.Tensor) and type(raw) in (torch.Tensor, torch.nn.Buffer)


def _find(
    name: str, backbone: WeightFolder, base_prefix: str, head: Mapping[int, WeightFolder]
) -> tuple[WeightFolder, str] | None:
    if name.startswith(BACKBONE_PREFIX):
        plain = name.removeprefix(BACKBONE_PREFIX)
        spellings = [plain, *(plain.replace(new, old) for new, old in OLD_SUFFIXES if plain.endswith(new))]
        spellings += [
            f"LayerNorm.{old}" for new, old in (("weight", "gamma"), ("bias", "beta")) if plain == f"LayerNorm.{new}"
        ]
        candidates = [prefix + spelling for spelling in spellings for prefix in ("", f"{base_prefix}.")]
        return next(((backbone, c) for c in candidates if c in backbone.names), None)
    index, _, plain = name.removeprefix(HEAD_PREFIX).partition(".")
    folder = head[int(index)]
    candidates = [plain, *(old for new, old in DENSE_SUFFIXES if plain == new)]
    return next(((folder, c) for c in candidates if c in folder.names), None)


def _lazy_tensor(name: str, value: ir.Value, folder: WeightFolder, stored_name: str) -> ir.LazyTensor:
    expected = tuple(value.shape.numpy()) if value.shape is not None else None

    def load() -> ir.TensorProtocol:
        tensor = folder.load(stored_name)
        if tuple(tensor.shape) != expected:
            raise ExportError(
                f"{stored_name} has shape {tuple(tensor.shape)} in the checkpoint, the model needs {expected}"
            )
        array: np.ndarray = tensor.float().numpy()
        return ir.tensor(np.ascontiguousarray(array), name=name)

    assert value.shape is not None
    return ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
