"""The reference: the unpatched transformers model, loaded separately, one text at a time, pooled by plain numpy."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.utils import logging

from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head import build_head_modules
from poolgraph.export.resolve import ExportPlan
from poolgraph.poolers.head import Normalize
from poolgraph.runtime.tokenizer import EncodedText

Rows = NDArray[np.float32]

REFERENCE_POOLING: Mapping[str, Callable[[Rows, int], Rows]] = MappingProxyType(
    {
        "cls": lambda rows, prompt: rows[prompt if len(rows) > prompt else 0],
        "max": lambda rows, prompt: rows[prompt:].max(0),
        "mean": lambda rows, prompt: rows[prompt:].mean(0),
        "mean_sqrt_len_tokens": lambda rows, prompt: rows[prompt:].sum(0) / np.sqrt(len(rows) - prompt),
        "weightedmean": lambda rows, prompt: np.average(rows, axis=0, weights=_weights(len(rows), prompt)),
        "lasttoken": lambda rows, prompt: rows[-1],
    }
)
"""Pooling of one text's rows (num_tokens, hidden_size) without a prompt of ``prompt`` tokens: sentence-transformers'
definitions, written apart from the pooler that is compiled."""


def _weights(num_tokens: int, prompt: int) -> Rows:
    weights = np.arange(1, num_tokens + 1, dtype=np.float32)
    weights[:prompt] = 0
    return weights


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """Raw answers (before a final normalization) of each text, in order."""

    sequence: list[Rows]
    token: list[Rows] | None


def reference_name() -> str:
    """Return what the answers are compared with, for the report."""
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__} float32, one text at a time"


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that made and checked the graphs."""
    names = ("onnx-ir", "onnxruntime", "onnxscript", "tokenizers", "torch", "transformers")
    return {name: importlib.metadata.version(name) for name in names}


def compute_reference(plan: ExportPlan, encoded: Sequence[EncodedText], *, with_tokens: bool) -> ReferenceAnswers:
    """Answer texts with the unpatched model in float32.

    Args:
        plan: What is exported.
        encoded: The texts as the artifact's tokenizer encodes them.
        with_tokens: Also return the token family's answers.
    """
    model = _load_backbone(plan)
    head = _load_head(plan)
    sequence, token = [], []
    with torch.no_grad():
        for text in encoded:
            rows = _hidden_rows(model, text)
            pooled = [REFERENCE_POOLING[mode](rows, text.prompt_length) for mode in plan.pooling]
            sequence.append(_apply(head, np.concatenate(pooled)))
            if with_tokens:
                token.append(_apply(head, rows))
    return ReferenceAnswers(sequence, token if with_tokens else None)


def _hidden_rows(model: nn.Module, text: EncodedText) -> Rows:
    ids = torch.from_numpy(text.input_ids)[None]
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if text.token_type_ids is not None:
        arguments["token_type_ids"] = torch.from_numpy(text.token_type_ids)[None]
    rows: Rows = model(**arguments).last_hidden_state[0].float().numpy()
    return rows


def _load_backbone(plan: ExportPlan) -> nn.Module:
    """Load the unpatched model, without the progress bar that would run into ours."""
    messages: Any = logging
    shown = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        loaded: Any = plan.model_class.from_pretrained(
            plan.backbone_folder, config=copy.deepcopy(plan.config), dtype=torch.float32, local_files_only=True
        )
    finally:
        if shown:
            messages.enable_progress_bar()
    model: nn.Module = loaded.eval()
    return model


def _load_head(plan: ExportPlan) -> list[nn.Module]:
    """Load the head's modules with real weights, without the trailing normalization that the runtime applies."""
    modules = build_head_modules(plan)
    for module, described in zip(modules, plan.sentence_transformer.head, strict=False):
        if any(True for _ in module.parameters()):
            folder = WeightFolder(plan.checkpoint.folder / described.path)
            module.load_state_dict(head_state(folder))
    return modules[:-1] if modules and isinstance(modules[-1], Normalize) else modules


def head_state(folder: WeightFolder) -> dict[str, torch.Tensor]:
    """Return a head module's tensors by sentence-transformers' names (``linear.weight``), whatever the file's are."""
    renamed = {
        "weight": "linear.weight",
        "bias": "linear.bias",
        "dense.weight": "linear.weight",
        "dense.bias": "linear.bias",
    }
    return {renamed.get(name, name): folder.load(name).float() for name in folder.names}


def _apply(modules: Sequence[nn.Module], value: Rows) -> Rows:
    result = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    for module in modules:
        result = module(result)
    return result.numpy()
