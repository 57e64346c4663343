"""The reference: the unpatched transformers model, loaded separately, one text at a time, pooled by plain numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from poolgraph.errors import ExportError
from poolgraph.export.backbone import Backbone, class_for_task, find_class
from poolgraph.export.head import load_steps
from poolgraph.export.resolve import ExportPlan
from poolgraph.export.rotary import forget_lengths
from poolgraph.poolers.head import Standardize
from poolgraph.runtime.runner_uniform import attended_tokens
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.versions import installed_versions

TOOLS = ("onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "tokenizers", "torch", "transformers")

Rows = NDArray[np.float32]

REFERENCE_POOLING: Mapping[str, Callable[[Rows, int], Rows]] = MappingProxyType(
    {
        "cls": lambda rows, prompt: rows[prompt if len(rows) > prompt else 0],
        "max": lambda rows, prompt: rows[prompt:].max(0),
        "sum": lambda rows, prompt: rows[prompt:].sum(0),
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
    """Raw answers (logits, or embeddings before a final normalization) of each text, in order, family by family."""

    sequence: list[Rows] | None
    token: list[Rows] | None


def reference_name() -> str:
    """Return what the answers are compared with, for the report."""
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__} float32, one text at a time"


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that made and checked the graphs."""
    return installed_versions(TOOLS)


def compute_reference(plan: ExportPlan, encoded: Sequence[EncodedText]) -> ReferenceAnswers:
    """Answer texts with the unpatched model in float32.

    A classifier's logits are those of transformers' own class, head included, where it has one for the checkpoint.

    Args:
        plan: What is exported.
        encoded: The texts as the artifact's tokenizer encodes them.

    Raises:
        ExportError: The tokenizer gives token ids that the model has no embedding of, or the model cannot run.
    """
    largest = max(int(text.input_ids.max(initial=0)) for text in encoded)
    if largest >= plan.limits.vocab_size:
        raise ExportError(
            f"the tokenizer gives token id {largest}, but the model's vocabulary ends at "
            f"{plan.limits.vocab_size - 1}: they do not belong together"
        )
    model = ReferenceModel(plan)
    try:
        return model.answer(encoded)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"transformers' own {plan.model_class.__name__} cannot answer texts of up to "
            f"{max(text.input_ids.size for text in encoded)} tokens, so that nothing can be verified: "
            f"{type(error).__name__}: {error}"
        ) from error


class ReferenceModel:
    """The unpatched model in float32 with the plan's head; loaded once, asked often.

    Args:
        plan: What is exported.
    """

    def __init__(self, plan: ExportPlan) -> None:
        self._plan = plan
        self._model = load_unpatched(plan, full_class(plan) or plan.model_class)
        self._head = ReferenceHead(plan)

    def answer(self, encoded: Sequence[EncodedText]) -> ReferenceAnswers:
        """Answer texts, one at a time."""
        plan, head = self._plan, self._head
        sequence, token = [], []
        with torch.no_grad():
            for text in encoded:
                rows, logits = _run(self._model, text)
                if plan.head.scores_words and logits is not None:
                    rows, logits = head.saturate(logits), None
                if plan.head.pooling is not None:
                    sequence.append(head.pool(rows, text.prompt_length) if logits is None else head.standardize(logits))
                if plan.token_size is not None:
                    own = logits if logits is not None and plan.head.pooling is None else None
                    token.append(head.finish_tokens(rows) if own is None else head.standardize(own))
        return ReferenceAnswers(
            None if plan.head.pooling is None else sequence, None if plan.token_size is None else token
        )


class ReferenceHead:
    """The plan's head with real weights, run by torch on one text's rows."""

    def __init__(self, plan: ExportPlan) -> None:
        self._modes = plan.head.pooling or ()
        self._rows = load_steps(plan.head.rows) if plan.head.kind == "logits" else ()
        self._saturation = load_steps(step for step in plan.head.rows if step.kind == "LogSaturation")
        self._pooled = load_steps(plan.head.pooled)
        self._shared = load_steps(plan.head.shared)
        self._tokens = load_steps(plan.head.tokens) or self._shared

    def pool(self, rows: Rows, prompt_length: int) -> Rows:
        """Apply a classifier's steps of rows to (num_tokens, hidden_size), pool and apply all others."""
        rows = _apply(self._rows, rows)
        pooled = np.concatenate([REFERENCE_POOLING[mode](rows, prompt_length) for mode in self._modes])
        return self.finish(_apply(self._pooled, pooled))

    def finish(self, rows: Rows) -> Rows:
        """Apply the steps of pooled vectors, which as a rule those of token rows are too."""
        return _apply(self._shared, rows)

    def finish_tokens(self, rows: Rows) -> Rows:
        """Apply the steps of token rows."""
        return _apply(self._tokens, rows)

    def saturate(self, logits: Rows) -> Rows:
        """Apply what a masked language model of transformers does not have of the steps before the pooling."""
        return _apply(self._saturation, logits)

    def standardize(self, logits: Rows) -> Rows:
        """Apply what the checkpoint's own class does not have: the caller's mean and sigma."""
        return _apply([module for module in self._shared if isinstance(module, Standardize)], logits)


def full_class(plan: ExportPlan) -> type[PreTrainedModel] | None:
    """Return transformers' class of the whole checkpoint if its answers, or its scores of words, are the plan's."""
    if plan.head.scores_words:
        return find_class(class_for_task(plan.config, "fill-mask") or "")
    if plan.head.kind != "logits" or plan.head.converted or plan.options.pooler_config.seq_pooling_type is not None:
        return None
    return plan.backbone.full_class if plan.backbone.form in ("sequence_logits", "token_logits") else None


def _run(model: Any, text: EncodedText) -> tuple[Rows, Rows | None]:
    """Return the backbone's rows (num_tokens, hidden_size), and the logits where the model has a head."""
    ids = torch.from_numpy(text.input_ids)[None]
    arguments = {"input_ids": ids, "attention_mask": torch.from_numpy(attended_tokens(text))[None]}
    if text.token_type_ids is not None:
        arguments["token_type_ids"] = torch.from_numpy(text.token_type_ids)[None]
    seen: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    try:
        output = model(**arguments)
    finally:
        hook.remove()
    logits = output.logits[0].float().numpy() if "logits" in output else None
    return seen[0][0].float().numpy(), logits


def load_unpatched(plan: ExportPlan, model_class: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load the unpatched model, without a progress bar and remarks that would run into ours.

    Without a padding token transformers takes a text's last token for a decoder's answer, as vLLM does, and not the
    last that is no padding token, which differs for texts that end with it.
    """
    config = copy.deepcopy(plan.config)
    if plan.head.kind == "logits" and plan.head.pooling == ("lasttoken",):
        config.pad_token_id = None
    messages: Any = logging
    shown, level = messages.is_progress_bar_enabled(), messages.get_verbosity()
    messages.disable_progress_bar()
    messages.set_verbosity_error()  # a head that is cut off is no news
    # Up to transformers 5.17, its default attention knows no softcap.
    attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    try:
        loaded: Any = model_class.from_pretrained(
            config=config, dtype=dtype, local_files_only=True, **attention, **_choose_source(plan.backbone)
        )
    finally:
        messages.set_verbosity(level)
        if shown:
            messages.enable_progress_bar()
    model: nn.Module = loaded.eval()
    forget_lengths(model)
    if getattr(config, "is_causal", True) is False:
        _see_both_sides(model)
    return model


def _see_both_sides(model: nn.Module) -> None:
    """Tell attention what the configuration says: without a mask, transformers asks the layer whether it is causal."""
    for module in model.modules():
        if getattr(module, "is_causal", None):
            module.is_causal = False  # type: ignore[assignment]


def _choose_source(backbone: Backbone) -> dict[str, Any]:
    """Return where transformers reads the tensors: from the files, unless only a layout of ours can read them."""
    if backbone.layout is None or not backbone.layout.is_own:
        return {"pretrained_model_name_or_path": backbone.folder}
    weights = backbone.open_weights()
    return {
        "pretrained_model_name_or_path": None,
        "state_dict": {name: weights.load(name) for name in weights.names},
    }


def _apply(modules: Sequence[nn.Module], value: Rows) -> Rows:
    result = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    for module in modules:
        result = module(result)
    return result.numpy()
