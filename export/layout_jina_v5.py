"""The layout of jina-embeddings-v5-text: a backbone of transformers' and an adapter a task, in files of peft's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import torch
from transformers import PretrainedConfig

from poolgraph.errors import ExportError, InputError, UnsupportedArchitecture
from poolgraph.export.checkpoint import TensorFile, open_tensor_file
from poolgraph.export.layouts import Json, Layout, Weights, read_rope

DEFAULT_TASK = "retrieval"
"""vLLM's."""

ADAPTERS = "adapters"
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
PREFIXES = ("base_model.model.", "model.")
"""What peft and classes with a head put before the backbone's names."""


class AdapterConfig(msgspec.Struct, frozen=True):
    """What is read of adapter_config.json; the last ones are what is not merged here."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Any] | None = None
    modules_to_save: list[str] | None = None

    @property
    def scaling(self) -> float:
        """What the product of the two matrices is multiplied by (arXiv:2106.09685; arXiv:2312.03732)."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Settings that say that the adapter is more than two matrices a weight."""
        names = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")
        return (*(name for name in names if getattr(self, name)), *(("bias",) if self.bias != "none" else ()))


class MergedAdapter:
    """A checkpoint with one adapter merged into the weights: ``W + scaling * B A``.

    Args:
        stored: The tensors without the adapter.
        scaling: The factor.
        matrices: A and B of each weight, by its name without prefixes.
    """

    def __init__(
        self, stored: Weights, scaling: float, matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self._stored, self._scaling, self._matrices = stored, scaling, matrices
        spare = sorted(set(matrices) - {plain_name(name) for name in stored.names})
        if spare:
            raise ExportError(f"the adapter changes weights that the checkpoint lacks: {', '.join(spare)}")

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._stored.folder

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return self._stored.names

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor; in float32 where it is merged."""
        tensor, pair = self._stored.load(name), self._matrices.get(plain_name(name))
        if pair is None:
            return tensor
        down, up = (matrix.float() for matrix in pair)
        return tensor.float() + self._scaling * (up @ down)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._stored.shape(name)

    def stored_name(self, name: str) -> str:
        """Return the name in the files."""
        return self._stored.stored_name(name)


def plain_name(name: str) -> str:
    """Return a tensor's name without prefixes."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def merge_adapter(stored: Weights, config: PretrainedConfig) -> Weights:
    """Merge the adapter of the task that ``jina_task`` names.

    Raises:
        InputError: the checkpoint has none for it.
        UnsupportedArchitecture: one that is more than two matrices a weight.
    """
    folder = stored.folder / ADAPTERS
    task = getattr(config, "jina_task", None) or DEFAULT_TASK
    tasks = sorted(it.parent.name for it in folder.glob("*/adapter_config.json"))
    if task not in tasks:
        have = f"has {tasks}" if tasks else f"has no folder {ADAPTERS}/ with any"
        raise InputError(f"jina_task {task!r} is unknown: the checkpoint {have}", parameter="jina_task", value=task)
    settings = _read_settings(folder / task / "adapter_config.json")
    return MergedAdapter(stored, settings.scaling, _read_matrices(_open_adapter(folder / task)))


def _read_settings(file: Path) -> AdapterConfig:
    try:
        settings = msgspec.json.decode(file.read_bytes(), type=AdapterConfig)
    except msgspec.MsgspecError as error:
        raise ExportError(f"{file.parent.name}/{file.name} is no configuration of an adapter: {error}") from error
    if settings.unknown:
        raise UnsupportedArchitecture(
            f"the adapter {file.parent.name!r} has {', '.join(settings.unknown)}, which are not merged here; merge it "
            "with merge_and_unload() of peft, and export what save_pretrained() then writes"
        )
    return settings


def _open_adapter(folder: Path) -> TensorFile:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ExportError(f"the adapter {folder.name!r} has no {file.name}")
    return open_tensor_file(file)


def _read_matrices(file: TensorFile) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    stems = {name.removesuffix(end) for name in file.names for end in (LORA_A, LORA_B) if name.endswith(end)}
    if not stems:
        raise ExportError(f"the adapter {file.path.parent.name!r} has no matrices in {file.path.name}")
    whole = {f"{stem}{end}" for stem in stems for end in (LORA_A, LORA_B)}
    if whole != set(file.names):
        raise ExportError(f"the adapter has tensors beside pairs of A and B: {sorted(whole ^ set(file.names))[:5]}")
    return {plain_name(f"{stem}.weight"): (file.load(stem + LORA_A), file.load(stem + LORA_B)) for stem in stems}


def _is_jina(published: Json) -> bool:
    return published.get("model_type") == "jina_embeddings_v5"


def _layout(model_type: str, model_class: str, *, is_decoder: bool) -> Layout:
    return Layout(
        model_type=model_type,
        recognize=lambda published: _is_jina(published) and published.get("is_decoder", True) is is_decoder,
        classes=MappingProxyType({"JinaEmbeddingsV5Model": model_class}),
        derive=lambda published: {"rope_parameters": read_rope(published)},
        view=merge_adapter,
    )


JINA_V5_SMALL = _layout("qwen3", "Qwen3Model", is_decoder=True)
JINA_V5_NANO = _layout("eurobert", "EuroBertModel", is_decoder=False)
"""Both have one model type and one class; the encoder alone says that it is no decoder."""
