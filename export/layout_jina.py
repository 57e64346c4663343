"""The layout of Jina's rotary XLM-RoBERTa: embeddings-v3 with its adapters, colbert-v2, rerankers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PretrainedConfig

from poolgraph.errors import ExportError, InputError
from poolgraph.export.layouts import Json, Layout, Weights

DEFAULT_TASK = "text-matching"
"""vLLM's adapter, the only one that it serves."""

ORIGINAL, LORA_A, LORA_B = (f".parametrizations.weight.{part}" for part in ("original", "0.lora_A", "0.lora_B"))
"""Ends of the names of a parametrized weight's three tensors."""

CLASSES = MappingProxyType(
    {
        f"XLMRoberta{kind}": f"JinaEmbeddingsV3{kind}"
        for kind in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
    }
)


class MergedAdapters:
    """A checkpoint with one of its adapters merged into the weights: ``W + alpha / rank * B A``.

    Args:
        stored: The tensors; those of adapters hold all of them, (num_adapters, ...).
        index: Which adapter.
        scaling: alpha / rank.

    Raises:
        ExportError: there are no adapters, or parts of them are missing.
    """

    def __init__(self, stored: Weights, index: int, scaling: float) -> None:
        self._stored, self._index, self._scaling = stored, index, scaling
        _check_adapters(stored.names)
        self._merged = frozenset(_weight(name) for name in stored.names if name.endswith(ORIGINAL))
        plain = (name for name in stored.names if not name.endswith((ORIGINAL, LORA_A, LORA_B)))
        self._names = frozenset((*self._merged, *plain))

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._stored.folder

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors, merged ones as if there were no adapter."""
        return self._names

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor; in float32 where it is merged."""
        if name not in self._merged:
            return self._stored.load(name)
        stem = name.removesuffix(".weight")
        weight = self._stored.load(stem + ORIGINAL).float()
        down, up = (self._stored.load(stem + end)[self._index].float() for end in (LORA_A, LORA_B))
        # An embedding's table is the transpose of a linear layer's weight, and so are its A and B.
        change = down @ up if "embeddings" in name else up @ down
        return weight + self._scaling * change

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._stored.shape(name.removesuffix(".weight") + ORIGINAL if name in self._merged else name)

    def stored_name(self, name: str) -> str:
        """Return the name in the files."""
        return self._stored.stored_name(name)


def _check_adapters(names: Collection[str]) -> None:
    stems = [name.removesuffix(ORIGINAL) for name in names if name.endswith(ORIGINAL)]
    missing = sorted(stem + end for stem in stems for end in (LORA_A, LORA_B) if stem + end not in names)
    if missing:
        raise ExportError(f"the checkpoint lacks {len(missing)} tensors of its adapters: {', '.join(missing[:5])}")
    if not stems:
        raise ExportError(
            f"config.json names adapters (lora_adaptations), but the checkpoint has no tensor ...{ORIGINAL} nor "
            f"...{LORA_A}: if they were merged into its weights, export with --hf-overrides "
            """'{"lora_adaptations": null}'"""
        )


def _weight(name: str) -> str:
    return name.removesuffix(ORIGINAL) + ".weight"


def _derive(published: Json) -> dict[str, Any]:
    adapters, task = list(published.get("lora_adaptations") or ()), published.get("lora_task")
    if task is not None and task not in adapters:
        have = f"has {adapters}" if adapters else "has no adapters"
        raise InputError(f"lora_task {task!r} is unknown: the checkpoint {have}", parameter="lora_task", value=task)
    rope = {"rope_type": "default", "rope_theta": float(published.get("rotary_emb_base", 10000.0))}
    return {"rope_parameters": published.get("rope_parameters") or rope}


def _merge(stored: Weights, config: PretrainedConfig) -> Weights:
    task = getattr(config, "lora_task", None) or DEFAULT_TASK
    if task not in config.lora_adaptations:
        raise InputError(
            f"choose one of the checkpoint's adapters {config.lora_adaptations} as lora_task", parameter="lora_task"
        )
    scaling = float(config.lora_alpha) / float(config.lora_rank)
    return MergedAdapters(stored, config.lora_adaptations.index(task), scaling)


def _is_rotary(published: Json) -> bool:
    return published.get("model_type") == "xlm-roberta" and published.get("position_embedding_type") == "rotary"


JINA = Layout(model_type="jina_embeddings_v3", recognize=_is_rotary, classes=CLASSES, derive=_derive)

JINA_ADAPTERS = Layout(
    model_type="jina_embeddings_v3",
    recognize=lambda published: _is_rotary(published) and bool(published.get("lora_adaptations")),
    classes=CLASSES,
    derive=_derive,
    view=_merge,
)
