"""Writing graphs: initializers of all graphs of a precision in one external data file, each tensor once, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

INLINE_BYTES = 1024
"""Initializers up to this size stay inside the graph's file: shapes, axes, scalars."""

ALIGNMENT = 4096
"""Offsets of the large tensors, so that each can be memory-mapped by itself."""


def save_graphs(models: Mapping[str, ir.Model], directory: Path, weights_file: str) -> None:
    """Write models with one shared file of weights.

    Args:
        models: File name to model. A checkpoint's tensors (lazy ones) of equal names are equal; computed ones get their
            names from their content here, since each trace counts its own.
        directory: Folder of the files.
        weights_file: Name of the external data file in it.
    """
    shared: dict[str, ir.TensorProtocol] = {}
    for model in models.values():
        _name_by_content(model)
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes > INLINE_BYTES:
                shared.setdefault(name, tensor)
    external = ir.external_data.convert_tensors_to_external(
        list(shared.values()), directory, weights_file, alignment=ALIGNMENT, align_threshold=ALIGNMENT
    )
    stored = dict(zip(shared, external, strict=True))
    for file, model in models.items():
        for name, value in model.graph.initializers.items():
            if name in stored:
                value.const_value = stored[name]
        ir.save(model, directory / file)


def _name_by_content(model: ir.Model) -> None:
    """Rename computed tensors that are large enough to be shared after their content."""
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.LazyTensor) or tensor.nbytes <= INLINE_BYTES:
            continue
        array = tensor.numpy()
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]
        model.graph.initializers.pop(name)
        value.name = f"constant_{digest}"
        if value.name in model.graph.initializers:
            ir.convenience.replace_all_uses_with(value, model.graph.initializers[value.name])
        else:
            model.graph.register_initializer(value)
