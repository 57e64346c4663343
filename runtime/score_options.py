"""What a call of ``score`` asks for, and whether and how the model can answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.manifest import Manifest, Scoring
from poolgraph.runtime.score_template import TEMPLATES
from poolgraph.runtime.text_cuts import check_max_tokens, cut_texts
from poolgraph.runtime.texts import resolve_texts
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.tasks import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """How queries and documents become inputs of a model that scores.

    Attributes:
        instruction: What is asked of the model; takes the place of the template's own default.
        template: Name of a shipped template, a file, or a template's text; None is the artifact's own.
        template_kwargs: Further variables of the template, vLLM's ``chat_template_kwargs``.
        prompt_name: Name of one of a cross-encoder's prompts; None is its default prompt.
        prompt: A prompt itself; goes before ``prompt_name``.
        max_tokens_per_query: Tokens kept of a query; None and 0 keep all.
        max_tokens_per_doc: Tokens kept of a document; None and 0 keep all.
        truncate_to: Tokens kept of a longer input, special tokens included; -1 means the model's limit, None refuses
            longer ones. Of a pair the longer text is cut; in a template the document, and the prompt itself where the
            query alone is too long.
        truncation_side: Where tokens are cut off, ``left`` or ``right``; None is the model's own side.
        plain: Take every token of a late-interaction model as it is.
    """

    instruction: str | None = None
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt_name: str | None = None
    prompt: str | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    truncate_to: int | None = None
    truncation_side: str | None = None
    plain: bool = False

    @property
    def names_prompt(self) -> bool:
        """Whether the caller says which prompt, rather than the model."""
        return self.prompt is not None or self.prompt_name is not None

    def max_tokens_of(self, side: Side) -> int | None:
        """Return how many tokens are kept of each text of a side, None for all."""
        return (self.max_tokens_per_query if side == "query" else self.max_tokens_per_doc) or None


def resolve_scoring(manifest: Manifest, *, template: str | None = None) -> Scoring:
    """Return how an artifact scores.

    Args:
        manifest: The artifact's.
        template: The score template that the caller gives, if any: it makes a cross-encoder of a classifier with one
            label that was exported without.

    Raises:
        TaskNotSupported: it does not score.
    """
    if manifest.scoring is not None:
        return manifest.scoring
    if "embed" in manifest.tasks:
        return Scoring(kind="bi_encoder")
    if "classify" not in manifest.tasks:
        raise TaskNotSupported(
            f"This model does not support the Scoring API. Its tasks are {list(manifest.tasks)}; scoring takes a model "
            "that embeds, or one that classifies with one label"
        )
    if manifest.pooler.embedding_size != 1:
        raise TaskNotSupported(
            f"Scoring API is only enabled for num_labels == 1. This model has {manifest.pooler.embedding_size} labels; "
            "classify gives their probabilities"
        )
    if template is None:
        raise TaskNotSupported(
            "This model does not support the Scoring API. It was exported without a form for a query and a document; "
            "give template= a file or one of "
            f"{', '.join(sorted(TEMPLATES))}, or export it again with --score-template"
        )
    return Scoring(kind="cross_encoder")


def check_options(scoring: Scoring, options: ScoreOptions, max_model_len: int) -> None:
    """Check the options that do not depend on the texts.

    Raises:
        InputError: a limit that the model does not have, or an option that this way of scoring has no place for.
    """
    check_max_tokens("max_tokens_per_query", options.max_tokens_per_query, max_model_len)
    check_max_tokens("max_tokens_per_doc", options.max_tokens_per_doc, max_model_len)
    kind = scoring.kind.replace("_", "-")
    if scoring.kind != "cross_encoder":
        for name in ("instruction", "template", "template_kwargs"):
            if getattr(options, name):
                raise InputError(
                    f"{name} is for a cross-encoder that reads both texts in a score template; this model is a {kind}",
                    parameter=name,
                )
        if options.prompt_name or options.prompt:
            raise InputError(
                f"a prompt is for a cross-encoder; this model is a {kind}: embed both sides with their prompts and "
                "compare the embeddings",
                parameter="prompt_name" if options.prompt is None else "prompt",
                value=options.prompt_name if options.prompt is None else options.prompt,
            )
    if options.plain and scoring.kind != "late_interaction":
        raise InputError(f"plain is for late interaction; this model is a {kind}", parameter="plain")


def check_activation(scoring: Scoring, use_activation: bool | None) -> None:
    """Check whether the scores have an activation that can be chosen.

    Raises:
        InputError: not a bool, or the model is no cross-encoder.
    """
    PoolingParams(use_activation=use_activation)
    if use_activation is not None and scoring.kind != "cross_encoder":
        raise InputError(
            f"use_activation is for a cross-encoder; this model is a {scoring.kind.replace('_', '-')}",
            parameter="use_activation",
            value=use_activation,
        )


def cut_side(tokenizer: TextTokenizer, side: Side, texts: list[str], options: ScoreOptions) -> list[str]:
    """Return the texts of one side, cut to the tokens that are kept of each where the caller says how many."""
    return [cut.text for cut in cut_texts(tokenizer, texts, options.max_tokens_of(side))]


def resolve_side_texts(texts: str | Sequence[str]) -> list[str]:
    """Return the texts of one side as a list, also when there are none, which ``plan_pairs`` refuses.

    Raises:
        InputError: something that is not a text.
    """
    # numpy's arrays of no dimension have __len__ and refuse it.
    sized = isinstance(texts, Sized) and not isinstance(texts, str | Mapping) and getattr(texts, "ndim", 1) > 0
    return [] if sized and len(texts) == 0 else resolve_texts(texts)


def check_ranking(query: object, top_n: int | None) -> None:
    """Check the query of ``rerank``, and how many documents are asked for.

    Raises:
        InputError: no text, or no count.
    """
    if not isinstance(query, str):
        raise InputError(f"query must be a str, got {type(query).__name__}", parameter="query")
    check_top_n(top_n)


def check_top_n(top_n: int | None) -> None:
    """Check how many documents are asked for; None and 0 stand for all.

    Raises:
        InputError: no count.
    """
    if top_n is not None and (type(top_n) is not int or top_n < 0):
        raise InputError(
            f"top_n must be a number of documents, or None or 0 for all of them, not {top_n!r}",
            parameter="top_n",
            value=top_n,
        )
