"""The engines of the GPU benchmark: a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gpu_workloads import Ids, Workload
from numpy.typing import NDArray

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an engine is loaded for.

    Attributes:
        model: Name of the model.
        device: ``cuda`` or ``cpu``.
        checkpoint_dir: The checkpoint.
        artifact_dir: poolgraph's artifact of it.
        workloads: What it will be asked.
    """

    model: str
    device: str
    checkpoint_dir: Path
    artifact_dir: Path
    workloads: Sequence[Workload]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loaded engine.

    Attributes:
        answer: Token ids to (num_texts, size) on the host.
        embed: Texts to the same, tokenizing included; None for an engine that is not measured from strings.
        note: What the user should know of how it runs.
    """

    answer: Callable[[Sequence[Ids]], Rows]
    embed: Callable[[Sequence[str]], Rows] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """How an engine is loaded.

    Attributes:
        label: Its name in tables.
        module: The file with its ``load(job, **options)``.
        options: What that is given.
        devices: Where it runs.
        is_default: Whether it is measured without being named.
        one_shape_only: Whether it is asked for texts of one length alone.
    """

    label: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cuda",)
    is_default: bool = True
    one_shape_only: bool = False

    def load(self, job: Job) -> Engine:
        """Load it."""
        engine: Engine = import_module(self.module).load(job, **self.options)
        return engine

    def takes(self, workload: Workload) -> bool:
        """Whether it is asked for a workload."""
        return workload.is_one_shape or not self.one_shape_only


REFERENCE = "reference"
POOLGRAPH, TORCH = "gpu_engine_poolgraph", "gpu_engine_torch"

ENGINES: Mapping[str, EngineRow] = {
    REFERENCE: EngineRow(
        label="torch fp32", module=TORCH, options={"dtype": "float32"}, devices=("cuda", "cpu"), is_default=False
    ),
    "poolgraph-packed-graphs": EngineRow(
        label="poolgraph fp16, packed, CUDA graphs",
        module=POOLGRAPH,
        options={"variant": "cuda_packed_fp16", "cuda_graphs": True},
    ),
    "poolgraph-padded-graphs": EngineRow(
        label="poolgraph fp16, padded, CUDA graphs",
        module=POOLGRAPH,
        options={"variant": "cuda_fp16", "cuda_graphs": True},
    ),
    "poolgraph-packed-cublaslt": EngineRow(
        label="poolgraph fp16, packed, cuBLASLt, CUDA graphs",
        module=POOLGRAPH,
        options={"variant": "cublaslt_packed_fp16", "cuda_graphs": True},
    ),
    "poolgraph-padded-cublaslt": EngineRow(
        label="poolgraph fp16, padded, cuBLASLt, CUDA graphs",
        module=POOLGRAPH,
        options={"variant": "cublaslt_fp16", "cuda_graphs": True},
    ),
    "torch-padded": EngineRow(
        label="transformers fp16, SDPA, padded", module=TORCH, options={"dtype": "float16"}, devices=("cuda",)
    ),
    "torch-unpadded": EngineRow(
        label="transformers fp16, flash attention, unpadded",
        module=TORCH,
        options={"dtype": "float16", "way": "unpadded"},
    ),
    "onnxruntime": EngineRow(label="ONNX Runtime fp16, portable graph", module="gpu_engine_onnxruntime"),
    "poolgraph-packed": EngineRow(
        label="poolgraph fp16, packed", module=POOLGRAPH, options={"variant": "cuda_packed_fp16", "cuda_graphs": False}
    ),
    "poolgraph-padded": EngineRow(
        label="poolgraph fp16, padded", module=POOLGRAPH, options={"variant": "cuda_fp16", "cuda_graphs": False}
    ),
    "torch-flash2": EngineRow(
        label="transformers fp16, flash_attention_2, padded",
        module=TORCH,
        options={"dtype": "float16", "attention": "flash_attention_2"},
    ),
    "torch-compiled": EngineRow(
        label="transformers fp16, SDPA, torch.compile",
        module=TORCH,
        options={"dtype": "float16", "way": "compiled"},
        is_default=False,
        one_shape_only=True,
    ),
    "poolgraph-cpu": EngineRow(label="poolgraph fp32", module=POOLGRAPH, devices=("cpu",)),
    "torch-cpu": EngineRow(
        label="transformers fp32, SDPA, padded", module=TORCH, options={"dtype": "float32"}, devices=("cpu",)
    ),
    "torch-unpadded-cpu": EngineRow(
        label="transformers fp32, unpadded",
        module=TORCH,
        options={"dtype": "float32", "way": "unpadded"},
        devices=("cpu",),
    ),
    "onnxruntime-cpu": EngineRow(
        label="ONNX Runtime fp32, portable graph",
        module="gpu_engine_onnxruntime",
        options={"half": False},
        devices=("cpu",),
    ),
}


def choose_engines(device: str, names: Sequence[str] | None) -> list[str]:
    """Return the engines to measure on a device, those named or the default ones, in the table's order."""
    wanted = [name for name, row in ENGINES.items() if (row.is_default if names is None else name in names)]
    unknown = set(names or ()) - ENGINES.keys()
    if unknown:
        raise SystemExit(f"unknown engines {sorted(unknown)}; there are {list(ENGINES)}")
    return [name for name in wanted if device in ENGINES[name].devices]
