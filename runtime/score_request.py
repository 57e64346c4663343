"""What a caller of ``LLM.score`` asks for: pairs, parameters, and the options among ``extra_kwargs``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest, Scoring
from poolgraph.runtime.long_texts import LongTexts
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestOptions, RequestRunner
from poolgraph.runtime.score_options import ScoreOptions, check_options, resolve_scoring
from poolgraph.runtime.score_pairs import plan_pairs
from poolgraph.runtime.score_routes import choose_scorer
from poolgraph.runtime.texts import TO_MODEL_LIMIT

_EXTRA_KWARGS: Final = ("max_tokens_per_query", "max_tokens_per_doc", "chat_template_kwargs", "plain_late_interaction")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Pairs to score.

    Attributes:
        queries: Texts or token ids.
        documents: Texts or token ids.
        pairs: For each score its query and its document.
        params: The caller's.
        kind: A key of ``score_requests.SCORERS``.
        scoring: How the texts become inputs.
        options: The options that every method of ``LLM`` takes.
    """

    queries: Sequence[ParsedPrompt]
    documents: Sequence[ParsedPrompt]
    pairs: Sequence[tuple[int, int]]
    params: PoolingParams
    kind: str
    scoring: ScoreOptions
    options: RequestOptions

    def texts(self, reader: str) -> tuple[list[str], list[str]]:
        """Return both sides as texts.

        Args:
            reader: Who reads them, for the message.

        Raises:
            InputError: token ids among them.
        """
        return _check_texts(self.queries, "data_1", reader), _check_texts(self.documents, "data_2", reader)


def plan_score_request(
    runner: RequestRunner,
    queries: Sequence[ParsedPrompt],
    documents: Sequence[ParsedPrompt],
    options: RequestOptions,
    template: str | None,
) -> ScoreRequest:
    """Merge what the call says with what the model was loaded with.

    Args:
        runner: The model.
        queries: The query, or one for each document.
        documents: The documents.
        options: The call's.
        template: Score template of the call: a shipped name, a file, or the template itself.

    Raises:
        InputError: lengths that do not pair, or an option that is not acceptable.
        TaskNotSupported: the model gives no scores.
    """
    params = _check_lone(options.pooling_params)
    own = runner.chat_template
    scoring = choose_scoring(runner.manifest, runner.default_task, template=template or own)
    # vLLM lets a chat template of the whole LLM rest where the model has no use for it.
    chosen = template or (own if scoring.kind == "cross_encoder" else None)
    return ScoreRequest(
        queries=queries,
        documents=documents,
        pairs=plan_pairs(len(queries), len(documents)),
        params=params,
        kind=choose_scorer(scoring, runner.manifest),
        scoring=_apply_rule(
            plan_scoring(scoring, options, params, chosen, runner.manifest.limits.max_model_len), runner.long_texts
        ),
        options=options,
    )


def _apply_rule(scoring: ScoreOptions, long_texts: LongTexts) -> ScoreOptions:
    if scoring.truncate_to is None and long_texts.kind == "truncate":
        return replace(scoring, truncate_to=TO_MODEL_LIMIT)
    return scoring


def _check_lone(params: object) -> PoolingParams:
    if params is not None and not isinstance(params, PoolingParams):
        raise InputError("score takes one PoolingParams for all texts", parameter="pooling_params")
    return params or PoolingParams()


def choose_scoring(manifest: Manifest, default_task: str | None, *, template: str | None) -> Scoring:
    """Decide how pairs are scored: by the task that the ``LLM`` is used for, as in vLLM.

    Args:
        manifest: The artifact's.
        default_task: That task.
        template: The caller's score template.

    Raises:
        TaskNotSupported: the model gives no scores.
    """
    if default_task == "token_embed" or manifest.tasks == ("token_embed",):
        return Scoring(kind="late_interaction")
    return resolve_scoring(manifest, template=template)


def plan_scoring(
    scoring: Scoring, options: RequestOptions, params: PoolingParams, template: str | None, max_model_len: int
) -> ScoreOptions:
    """Merge what the call says about texts and their limits.

    Args:
        scoring: How the model scores.
        options: The call's.
        params: Its ``extra_kwargs`` count here; a key without effect is warned about.
        template: Score template of the call or of the ``LLM``.
        max_model_len: The model's limit.

    Raises:
        InputError: a wrong value, or an option that this way of scoring has no place for.
    """
    extra = dict(params.extra_kwargs or {})
    if unknown := sorted((name for name in extra if name not in _EXTRA_KWARGS), key=str):
        message = f"extra_kwargs {unknown} have no effect on scores; those with one are {list(_EXTRA_KWARGS)}"
        warnings.warn(message, UserWarning, stacklevel=5)
    variables = _check_kind("chat_template_kwargs", extra.get("chat_template_kwargs"), Mapping)
    plain = _check_kind("plain_late_interaction", extra.get("plain_late_interaction"), bool)
    tokenization = options.tokenization
    own = params.truncate_prompt_tokens
    chosen = ScoreOptions(
        template=template,
        template_kwargs=variables or {},
        max_tokens_per_query=extra.get("max_tokens_per_query"),
        max_tokens_per_doc=extra.get("max_tokens_per_doc"),
        truncate_to=tokenization.truncate_prompt_tokens if own is None else own,
        truncation_side=tokenization.truncation_side,
        plain=bool(plain),
    )
    check_options(scoring, chosen, max_model_len)
    return chosen


def _check_kind(name: str, value: Any, kind: type) -> Any:
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, not {type(value).__name__}", parameter=name, value=value)
    return value


def _check_texts(prompts: Sequence[ParsedPrompt], name: str, reader: str) -> list[str]:
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise InputError(f"{reader} takes texts, not token ids", parameter=name)
    return texts
