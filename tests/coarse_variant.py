"""A variant of lower precision for tests: the float32 graph with noise on its weights, made in no time."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from poolgraph.graphs.artifact import open_artifact, record_files, save_manifest
from poolgraph.graphs.manifest import Graph

NOISE = 3e-3
"""Share of a matrix's standard deviation."""


def add_coarse_variant(artifact: Path, target: Path, *, keep_fp32: bool = True) -> Path:
    """Copy an artifact to ``target`` and add ``cpu_int8``; without ``keep_fp32``, it is all that there is."""
    shutil.copytree(artifact, target)
    manifest = open_artifact(target)
    exact = manifest.variant("cpu_fp32")
    graphs = {family: _add_noise(target, graph) for family, graph in exact.graphs.items()}
    coarse = msgspec.structs.replace(exact, name="cpu_int8", precision="int8", graphs=graphs)
    variants = (*manifest.variants, coarse) if keep_fp32 else (coarse,)
    save_manifest(target, msgspec.structs.replace(manifest, variants=variants, files=record_files(target)))
    return target


def _add_noise(folder: Path, graph: Graph) -> Graph:
    model = onnx.load(folder / graph.file)
    random = np.random.default_rng(3)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            noise = random.standard_normal(values.shape) * values.std() * NOISE
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    file = graph.file.replace("fp32", "int8")
    onnx.save(model, folder / file)
    return msgspec.structs.replace(graph, file=file)
