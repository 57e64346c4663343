"""How an artifact scores pairs: as a pair of sequences, through a score template, or by its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from poolgraph.errors import TaskNotSupported
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.cross_encoder import CrossEncoder
from poolgraph.export.head import HeadPlan
from poolgraph.export.language_model_head import find_reranker
from poolgraph.export.options import ExportOptions
from poolgraph.graphs.manifest import Scoring
from poolgraph.runtime.score_template import TEMPLATES, resolve_template

TEMPLATE_FILE = "score_template.jinja"
"""The template's file in an artifact, and where a checkpoint may keep its own."""

BY_ARCHITECTURE: Mapping[str, str] = {"LlamaBidirectionalForSequenceClassification": "nemotron_rerank"}
"""Templates of classifiers that need one although their head is an ordinary one."""


def choose_template(
    options: ExportOptions,
    head: HeadPlan,
    config: PretrainedConfig,
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    cross: CrossEncoder | None = None,
) -> str | None:
    """Return the text of the score template: the caller's, the checkpoint's own, or the published one of its kind.

    Files of a CrossEncoder say that pairs go through the tokenizer's chat template: then none is guessed.

    Raises:
        TaskNotSupported: a model that scores through a template, and none is known.
    """
    if head.kind != "logits" or head.pooling is None:
        return None
    if options.score_template is not None:
        return resolve_template(options.score_template).source
    own = _checkpoint_template(checkpoint, tokenizer)
    if own is not None:
        return own
    name = _published_name(config, head) if cross is None else None
    if name is not None:
        return resolve_template(name).source
    renders = cross is not None and cross.renders
    if renders or (is_causal(head) and (head.converted or options.task == "score")):
        who = "this CrossEncoder renders pairs" if renders else "a causal model scores a query and a document"
        raise TaskNotSupported(
            f"{who} through a score template, and none is known for this checkpoint, whose chat template is not for "
            "the roles query and document: give --score-template with a file or one of "
            f"{', '.join(sorted(TEMPLATES))}"
        )
    return None


def describe_scoring(
    head: HeadPlan, num_labels: int, template: str | None, *, late_interaction: bool
) -> Scoring | None:
    """Return how pairs are scored, None where they are not."""
    if late_interaction:
        return Scoring(kind="late_interaction")
    if head.kind == "embedding":
        return Scoring(kind="bi_encoder")
    if head.pooling is None or num_labels != 1 or (template is None and is_causal(head)):
        return None
    return Scoring(kind="cross_encoder", template=None if template is None else TEMPLATE_FILE)


def is_causal(head: HeadPlan) -> bool:
    """Whether texts are read from left to right: then the last token pools, and there is no form of a pair."""
    return head.pooling == ("lasttoken",)


def _checkpoint_template(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template file of ours, or a chat template that was written for the roles query and document."""
    file = Path(checkpoint.folder) / TEMPLATE_FILE
    if file.is_file():
        return resolve_template(str(file)).source
    chat = tokenizer.chat_template
    if isinstance(chat, str) and all(any(f"{q}{role}{q}" in chat for q in "'\"") for role in ("query", "document")):
        return resolve_template(chat).source
    return None


def _published_name(config: PretrainedConfig, head: HeadPlan) -> str | None:
    tokens = getattr(config, "classifier_from_token", None) or ()
    if head.converted or tokens:
        reranker = find_reranker(config.model_type, tokens)
        return reranker.template if reranker is not None else None
    return BY_ARCHITECTURE.get(str((config.architectures or [""])[0]))
