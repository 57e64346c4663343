"""What a caller of ``LLM.score`` asks for: pairs, parameters and the options among ``extra_kwargs``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.text_cuts import check_max_tokens

ScoringKind = Literal["cross_encoder", "bi_encoder", "late_interaction"]

_EXTRA_KWARGS: Final = ("max_tokens_per_query", "max_tokens_per_doc", "chat_template_kwargs", "plain_late_interaction")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreKwargs:
    """The keys of ``PoolingParams.extra_kwargs`` that scoring takes.

    Attributes:
        max_tokens_per_query: Tokens kept of a query, None for all.
        max_tokens_per_doc: Tokens kept of a document, None for all.
        chat_template_kwargs: Variables of the score template, ``instruction`` among them.
        plain_late_interaction: Score a late-interaction model by its plain token vectors, as vLLM does: no markers, no
            expansion, no skip list.
    """

    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    plain_late_interaction: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Pairs to score.

    Attributes:
        queries: Texts or token ids.
        documents: Texts or token ids.
        pairs: For each score its query and its document.
        params: The caller's.
        kwargs: What ``params.extra_kwargs`` say.
        options: The other options of the call.
        template: Score template of the call or of the ``LLM``; None for the artifact's own.
    """

    queries: Sequence[ParsedPrompt]
    documents: Sequence[ParsedPrompt]
    pairs: Sequence[tuple[int, int]]
    params: PoolingParams
    kwargs: ScoreKwargs
    options: RequestOptions
    template: str | None

    def truncate_to(self) -> int | None:
        """Return the tokens kept of a longer prompt, -1 for the model's limit, None for all."""
        own = self.params.truncate_prompt_tokens
        return self.options.tokenization().truncate_prompt_tokens if own is None else own

    def texts(self, kind: str) -> tuple[list[str], list[str]]:
        """Return both sides as texts.

        Raises:
            InputError: token ids, which ``kind`` of scoring cannot put together.
        """
        sides = [list(self.queries), list(self.documents)]
        for name, side in zip(("data_1", "data_2"), sides, strict=True):
            if any(not isinstance(prompt, str) for prompt in side):
                raise InputError(f"{kind} takes texts, not token ids", parameter=name)
        return (
            [prompt for prompt in sides[0] if isinstance(prompt, str)],
            [prompt for prompt in sides[1] if isinstance(prompt, str)],
        )


def parse_extra_kwargs(extra_kwargs: Mapping[str, Any] | None, max_model_len: int) -> ScoreKwargs:
    """Read ``PoolingParams.extra_kwargs``; a key without effect is warned about.

    Raises:
        InputError: a wrong value.
    """
    given = dict(extra_kwargs or {})
    if unknown := sorted(name for name in given if name not in _EXTRA_KWARGS):
        message = f"extra_kwargs {unknown} have no effect on scores; those with one are {list(_EXTRA_KWARGS)}"
        warnings.warn(message, UserWarning, stacklevel=4)
    variables = given.get("chat_template_kwargs")
    if variables is not None and not isinstance(variables, Mapping):
        raise InputError(
            f"chat_template_kwargs must be a mapping, not {type(variables).__name__}", parameter="chat_template_kwargs"
        )
    plain = given.get("plain_late_interaction", False)
    if not isinstance(plain, bool):
        raise InputError(
            f"plain_late_interaction must be a bool, not {type(plain).__name__}", parameter="plain_late_interaction"
        )
    limits = {
        name: check_max_tokens(name, given.get(name), max_model_len)
        for name in ("max_tokens_per_query", "max_tokens_per_doc")
    }
    return ScoreKwargs(**limits, chat_template_kwargs=dict(variables or {}), plain_late_interaction=plain)


def choose_scoring(manifest: Manifest, default_task: str | None, *, has_template: bool) -> ScoringKind:
    """Decide how pairs are scored: by the task that the model is used for, as in vLLM.

    Args:
        manifest: The artifact's.
        default_task: The task that the ``LLM`` was made for.
        has_template: Whether the caller brought a score template.

    Raises:
        TaskNotSupported: the model gives no scores.
    """
    tasks = manifest.tasks
    if default_task == "token_embed" or ("token_embed" in tasks and "embed" not in tasks):
        return "late_interaction"
    if "embed" in tasks:
        return "bi_encoder"
    if "classify" not in tasks:
        raise TaskNotSupported(
            f"This model does not support the Scoring API. Its tasks are {list(tasks)}; "
            "scores need embeddings, token embeddings or a classifier with one label."
        )
    if manifest.pooler.embedding_size != 1:
        raise TaskNotSupported(
            "Scoring API is only enabled for num_labels == 1. "
            f"This model has {manifest.pooler.embedding_size} labels; use LLM.classify."
        )
    if manifest.scoring is None and not has_template:
        raise TaskNotSupported(
            "This model does not support the Scoring API. It was exported without a score template; "
            "pass chat_template=..., or export the checkpoint with --score-template."
        )
    return "cross_encoder"
