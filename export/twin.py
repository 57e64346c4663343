"""The twin: a checkpoint's first layers with their real weights, verified in place of one too large for the memory."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import psutil
from transformers import PretrainedConfig

from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.manifest import CheckRow

COPIES = 2.5
"""Memory of verifying a model, in sizes of its fp32 weights: the reference's copy, then the session's, which ONNX
Runtime packs anew while the file is mapped. Measured on Qwen2 shapes of 1 and 4 layers: 2.1 to 2.3."""

LONGEST = 256
"""Longest probe in tokens: attention's scores over longer ones would need more memory than a layer's weights."""

SHARE_OF_FREE_MEMORY = 0.5
GIB = 2**30

Sources = Mapping[str, ir.TensorProtocol]
"""The tensors of a graph by name, as they come from the checkpoint."""

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """Bytes of a model's weights.

    Attributes:
        layer: Of the largest layer.
        rest: Of what is in no layer: embeddings, norms, head.
        num_layers: How many layers there are.
    """

    layer: int
    rest: int
    num_layers: int

    def total(self, num_layers: int) -> int:
        """Return the bytes of a model of ``num_layers`` layers, at most."""
        return self.rest + num_layers * self.layer


def measure_weights(sources: Sources) -> WeightSizes:
    """Add up the weights; a layer's have its number in their name."""
    layers: dict[str, int] = defaultdict(int)
    for name, tensor in sources.items():
        number = _LAYER.search(name)
        layers[number[1] if number else ""] += tensor.nbytes
    rest = layers.pop("", 0)
    return WeightSizes(layer=max(layers.values(), default=0), rest=rest, num_layers=len(layers))


def free_memory(max_memory: float | None) -> int:
    """Return the bytes that verification may use: ``max_memory`` GiB for the whole process, or half of what is free."""
    if max_memory is None:
        available: int = psutil.virtual_memory().available
        return int(SHARE_OF_FREE_MEMORY * available)
    resident: int = psutil.Process().memory_info().rss
    return int(max_memory * GIB) - resident


def choose_twin(sizes: WeightSizes, config: PretrainedConfig, memory: int) -> int | None:
    """Return how many layers the twin has, None where the whole model fits into ``memory`` bytes.

    At least those that show every kind of layer, even if they do not fit.
    """
    if COPIES * sizes.total(sizes.num_layers) <= memory or not hasattr(config, "num_hidden_layers"):
        return None
    fitting = int((memory / COPIES - sizes.rest) // max(sizes.layer, 1))
    return min(max(fitting, _count_kinds(config)), sizes.num_layers)


def shorten_plan(plan: ExportPlan, num_layers: int) -> ExportPlan:
    """Return the plan of the twin, whose texts are shorter, too."""
    config = copy.deepcopy(plan.config)
    config.num_hidden_layers = num_layers
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:num_layers]
    limits = msgspec.structs.replace(plan.limits, max_model_len=min(plan.limits.max_model_len, LONGEST))
    return replace(plan, backbone=replace(plan.backbone, config=config), limits=limits)


def collect_sources(models: Mapping[str, ir.Model]) -> Sources:
    """Return the tensors of all models that come from the checkpoint; each is read anew whenever it is asked for."""
    return {
        name: value.const_value
        for model in models.values()
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.LazyTensor)
    }


def compare_stored(models: Mapping[str, ir.Model], sources: Sources, directory: Path) -> CheckRow:
    """Compare every tensor of the files in ``directory`` with the checkpoint's, bit by bit, one at a time."""
    stored = {name: value for model in models.values() for name, value in model.graph.initializers.items()}
    different = [name for name, source in sources.items() if not _same(stored[name].const_value, source, directory)]
    share = len(different) / max(len(sources), 1)
    return CheckRow(
        variant="weights",
        family="tensors",
        check=f"not as in the checkpoint: {', '.join(different[:5])}" if different else "equal to the checkpoint",
        num_texts=len(sources),
        min_cosine=1.0 - share,
        max_difference=share,
        required_cosine=1.0,
        allowed_difference=0.0,
        passed=not different,
    )


def _same(stored: Any, source: ir.TensorProtocol, directory: Path) -> bool:
    expected = np.ascontiguousarray(source.numpy())
    if not isinstance(stored, ir.ExternalTensor):
        return np.array_equal(stored.numpy(), expected)
    # Read, not mapped: pages of a mapped file would count as this process's memory.
    with (directory / stored.location).open("rb") as file:
        file.seek(stored.offset or 0)
        found = file.read(stored.length)
    return found == expected.tobytes()


def _count_kinds(config: PretrainedConfig) -> int:
    """Return how many of the first layers show every kind of layer that the model has."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    first_experts = (getattr(config, "first_k_dense_replace", None) or 0) + 1  # DeepSeek's
    return max([first_experts, *(list(kinds).index(kind) + 1 for kind in set(kinds))])
