"""Writing graphs: initializers of all graphs of a precision in one external data file, each tensor once, streamed."""

from __future__ import annotations

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
        models: File name to model; equal initializer names mean equal tensors.
        directory: Folder of the files.
        weights_file: Name of the external data file in it.
    """
    shared: dict[str, ir.TensorProtocol] = {}
    for model in models.values():
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
