"""How an artifact scores pairs: as a pair of sequences, through a score template, or by its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from poolgraph.errors import ExportError, TaskNotSupported
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.cross_encoder import CrossEncoder
from poolgraph.export.head import HeadPlan
from poolgraph.export.language_model_head import find_reranker
from poolgraph.export.message_template import OTHER_TEMPLATE, TemplatePlan, plan_message_template
from poolgraph.export.options import ExportOptions
from poolgraph.graphs.manifest import Scoring
from poolgraph.runtime.score_template import resolve_template
from poolgraph.tasks import SIDES

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
) -> TemplatePlan | None:
    """Return the score template: the caller's, the checkpoint's own, or the published one of its kind.

    Files of a CrossEncoder say whether pairs go through the tokenizer's chat template: then none is guessed.

    Raises:
        TaskNotSupported: a model that scores through a template, and none is known.
        ExportError: a CrossEncoder's chat template that cannot be compiled.
    """
    if head.kind != "logits" or head.pooling is None:
        return None
    if options.score_template is not None:
        return TemplatePlan(source=resolve_template(options.score_template).source)
    file = Path(checkpoint.folder) / TEMPLATE_FILE
    if file.is_file():
        return TemplatePlan(source=resolve_template(str(file)).source)
    found = _guess_template(config, head, tokenizer) if cross is None else _message_template(cross, tokenizer)
    if found is None and is_causal(head) and (head.converted or options.task == "score"):
        raise TaskNotSupported(
            "a causal model scores a query and a document through a score template, and none is known for this "
            f"checkpoint, whose chat template is not for the roles query and document: {OTHER_TEMPLATE}"
        )
    return found


def describe_scoring(
    head: HeadPlan, num_labels: int, template: TemplatePlan | None, *, late_interaction: bool
) -> Scoring | None:
    """Return how pairs are scored, None where they are not."""
    if late_interaction:
        return Scoring(kind="late_interaction")
    if head.kind == "embedding":
        return Scoring(kind="bi_encoder")
    if head.pooling is None or num_labels != 1 or (template is None and is_causal(head)):
        return None
    if template is None:
        return Scoring(kind="cross_encoder")
    return Scoring(
        kind="cross_encoder",
        template=TEMPLATE_FILE,
        template_kwargs=dict(template.variables),
        content_parts=template.content_parts,
        add_special_tokens=template.add_special_tokens,
    )


def check_pairs(cross: CrossEncoder, head: HeadPlan, num_labels: int) -> None:
    """Check that pairs of a CrossEncoder can be answered as its files say, which is done where they are scored.

    Raises:
        ExportError: ``classify`` with second texts would leave out what the files put around a pair.
    """
    sentence = cross.sentence_transformer
    name = sentence.default_prompt_name
    does = [
        *(["renders every pair through its chat template"] if cross.renders else []),
        *([f"puts the default prompt {name!r} before every pair"] if sentence.prompts.get(name or "") else []),
    ]
    if does and head.kind == "logits" and num_labels != 1:
        raise ExportError(
            f"this CrossEncoder {' and '.join(does)}, and has {num_labels} labels; that is compiled for one label "
            "alone. To classify pairs as they are, take default_prompt_name out of config_sentence_transformers.json "
            "and 'message' out of the Transformer's modality_config"
        )


def is_causal(head: HeadPlan) -> bool:
    """Whether texts are read from left to right: then the last token pools, and there is no form of a pair."""
    return head.pooling == ("lasttoken",)


def _message_template(cross: CrossEncoder, tokenizer: PreTrainedTokenizerBase) -> TemplatePlan | None:
    if cross.message is None:
        return None
    sentence = cross.sentence_transformer
    default = sentence.prompts.get(sentence.default_prompt_name or "", "")
    return plan_message_template(cross.message, tokenizer, sentence.prompts.values(), default)


def _guess_template(
    config: PretrainedConfig, head: HeadPlan, tokenizer: PreTrainedTokenizerBase
) -> TemplatePlan | None:
    """Return a chat template that was written for the roles query and document, or the published one of the kind."""
    chat = tokenizer.chat_template
    if isinstance(chat, str) and all(any(f"{q}{role}{q}" in chat for q in "'\"") for role in SIDES):
        return TemplatePlan(source=resolve_template(chat).source)
    name = _published_name(config, head)
    return None if name is None else TemplatePlan(source=resolve_template(name).source)


def _published_name(config: PretrainedConfig, head: HeadPlan) -> str | None:
    tokens = getattr(config, "classifier_from_token", None) or ()
    if head.converted or tokens:
        reranker = find_reranker(config.model_type, tokens)
        return reranker.template if reranker is not None else None
    return BY_ARCHITECTURE.get(str((config.architectures or [""])[0]))
