"""Score requests of ``LLM`` to answers, one function a kind of scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.finish import finish_rows
from poolgraph.runtime.late_interaction import (
    SideRules,
    encode_side,
    resolve_side,
    scored_tokens,
)
from poolgraph.runtime.maxsim import maxsim_pairs
from poolgraph.runtime.outputs import ScoringOutput, ScoringRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestOptions, RequestRunner
from poolgraph.runtime.score_pairs import cosine_scores
from poolgraph.runtime.score_request import ScoreRequest
from poolgraph.runtime.score_routes import find_side_prompt, score_routes
from poolgraph.runtime.text_cuts import cut_texts
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.work import Run, Work
from poolgraph.tasks import Side

Scores = list[ScoringRequestOutput]
RequestIds = Iterator[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """One text of a pair that is answered alone: its request's number, its tokens, its vector or vectors."""

    request_id: str
    prompt_token_ids: list[int]
    num_truncated_tokens: int
    data: NDArray[np.float32]


_Sides = tuple[list[_Answer], list[_Answer]]


def score_by_cross_encoder(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Work[Scores]:
    """Score each pair in one run of the classifier; an answer has the tokens of its pair."""
    _check_special_tokens(request)
    queries, documents = request.texts("a cross-encoder")
    (finish,) = runner.plan_finishes([request.params], "classify")
    encoded = runner.model.encode_scoring_pairs(
        queries, documents, request.pairs, request.scoring, tokenizer=runner.tokenizer
    )
    raw = cast("NDArray[np.float32]", (yield Run(family="sequence", encoded=encoded)))
    return [
        ScoringRequestOutput(
            request_id=str(next(request_ids)),
            outputs=ScoringOutput(float(score)),
            prompt_token_ids=text.input_ids.tolist(),
            num_truncated_tokens=text.num_truncated_tokens,
        )
        for text, (score,) in zip(encoded, finish_rows(raw, finish), strict=True)
    ]


def score_by_cosine(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Work[Scores]:
    """Score each pair by the cosine of its embeddings; every text is embedded once."""
    queries, documents = yield from _run_prompts(runner, request, "embed", request_ids, use_activation=True)
    scores = cosine_scores(
        np.stack([query.data for query in queries]),
        np.stack([document.data for document in documents]),
        request.pairs,
    )
    return _join(runner, request, (queries, documents), scores)


def score_by_maxsim(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Work[Scores]:
    """Score each pair by MaxSim of its token embeddings.

    Queries and documents are encoded as the checkpoint defines them, where it does and plain vectors are not asked for.
    """
    plain = runner.manifest.late_interaction is None or request.scoring.plain
    if plain:
        queries, documents = yield from _run_prompts(runner, request, "token_embed", request_ids)
    else:
        queries, documents = yield from _run_sides(runner, request, request_ids)
    mean = not plain and runner.manifest.similarity_fn_name == "meanmaxsim"
    scores = maxsim_pairs(
        [query.data for query in queries], [document.data for document in documents], request.pairs, mean=mean
    )
    return _join(runner, request, (queries, documents), scores)


def score_by_routes(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Work[Scores]:
    """Score each pair by the model's own similarity, queries and documents answered by the route of each."""
    queries = yield from _run_route(runner, request, "query", request_ids)
    documents = yield from _run_route(runner, request, "document", request_ids)
    scores = score_routes(
        [query.data for query in queries],
        [document.data for document in documents],
        request.pairs,
        runner.manifest.similarity_fn_name,
    )
    return _join(runner, request, (queries, documents), scores)


SCORERS: Final[Mapping[str, Callable[[RequestRunner, ScoreRequest, RequestIds], Work[Scores]]]] = MappingProxyType(
    {
        "cross_encoder": score_by_cross_encoder,
        "bi_encoder": score_by_cosine,
        "late_interaction": score_by_maxsim,
        "routes": score_by_routes,
    }
)
"""How each kind of model scores pairs; all of them raise InputError for what is not acceptable."""


def answer_scores(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Work[Scores]:
    """Score the pairs of a request in their order; ``request_ids`` gives each text, or each pair, its number.

    Raises:
        InputError: a text or parameter is not acceptable.
    """
    return (yield from SCORERS[request.kind](runner, request, request_ids))


def _run_prompts(
    runner: RequestRunner, request: ScoreRequest, task: str, request_ids: RequestIds, **changes: Any
) -> Work[_Sides]:
    """Answer the texts of both sides as plain prompts, queries first."""
    cuts = [*_cut(runner, request, "query"), *_cut(runner, request, "document")]
    params = replace(request.params, extra_kwargs=None, **changes)
    options = replace(request.options, pooling_params=params)
    answers = yield from _run_cuts(runner, cuts, task, options, request_ids)
    return answers[: len(request.queries)], answers[len(request.queries) :]


def _run_route(
    runner: RequestRunner, request: ScoreRequest, side: Side, request_ids: RequestIds
) -> Work[list[_Answer]]:
    """Answer the texts of one side by its route, its prompt before them."""
    params = replace(request.params, extra_kwargs=None, use_activation=None)
    prefix = find_side_prompt(runner.manifest, side)
    options = replace(request.options, pooling_params=params, side=side, prefix=prefix)
    return (yield from _run_cuts(runner, _cut(runner, request, side), "embed", options, request_ids))


def _run_cuts(
    runner: RequestRunner,
    cuts: Sequence[tuple[ParsedPrompt, int]],
    task: str,
    options: RequestOptions,
    request_ids: RequestIds,
) -> Work[list[_Answer]]:
    """Answer prompts of which so many tokens were cut off before."""
    outputs = yield from runner.answer_prompts([prompt for prompt, _ in cuts], task, options, request_ids)
    return [
        _Answer(
            request_id=output.request_id,
            prompt_token_ids=output.prompt_token_ids,
            num_truncated_tokens=output.num_truncated_tokens + num_cut,
            data=output.outputs.data,
        )
        for output, (_, num_cut) in zip(outputs, cuts, strict=True)
    ]


def _run_sides(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Work[_Sides]:
    """Answer the texts of both sides as the checkpoint defines queries and documents, queries first."""
    _check_special_tokens(request)
    queries, documents = request.texts("late interaction")
    (finish,) = runner.plan_finishes([request.params], "token_embed")
    encoded = [
        *_encode_side(runner, request, "query", queries),
        *_encode_side(runner, request, "document", documents),
    ]
    raw = yield Run(family="token", encoded=[text for _, text, _ in encoded])
    answers = [
        _Answer(
            request_id=str(next(request_ids)),
            prompt_token_ids=text.input_ids.tolist(),
            num_truncated_tokens=text.num_truncated_tokens + num_cut,
            data=finish_rows(rows[scored_tokens(rules, text.input_ids)], finish),
        )
        for (rules, text, num_cut), rows in zip(encoded, raw, strict=True)
    ]
    return answers[: len(queries)], answers[len(queries) :]


def _encode_side(
    runner: RequestRunner, request: ScoreRequest, side: Side, texts: list[str]
) -> list[tuple[SideRules, EncodedText, int]]:
    """Return for each text of a side the side's rules, its tokens and how many were cut off before."""
    scoring = request.scoring
    rules = resolve_side(runner.manifest, side)
    limit = scoring.truncate_to
    runner.tokenizer.resolve_limit(limit, least=0)
    if limit is not None and limit != TO_MODEL_LIMIT:
        rules = replace(rules, max_tokens=limit if rules.max_tokens is None else min(limit, rules.max_tokens))
    cuts = cut_texts(runner.tokenizer, texts, scoring.max_tokens_of(side))
    truncate = True if limit == TO_MODEL_LIMIT else None
    encoded = encode_side(
        runner.tokenizer,
        rules,
        [cut.text for cut in cuts],
        truncate=truncate,
        truncation_side=scoring.truncation_side,
    )
    return [(rules, text, cut.num_truncated_tokens) for text, cut in zip(encoded, cuts, strict=True)]


def _cut(runner: RequestRunner, request: ScoreRequest, side: Side) -> list[tuple[ParsedPrompt, int]]:
    """Keep the first tokens of each prompt of a side; return what is kept and how many tokens were cut off."""
    prompts = request.queries if side == "query" else request.documents
    max_tokens = request.scoring.max_tokens_of(side)
    if max_tokens is None:
        return [(prompt, 0) for prompt in prompts]
    cuts = iter(cut_texts(runner.tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)], max_tokens))
    kept: list[tuple[ParsedPrompt, int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            cut = next(cuts)
            kept.append((cut.text, cut.num_truncated_tokens))
        else:
            kept.append((prompt[:max_tokens], max(0, len(prompt) - max_tokens)))
    return kept


def _check_special_tokens(request: ScoreRequest) -> None:
    """Refuse to leave out special tokens where they are a part of how a query meets a document."""
    if not request.options.tokenization.add_special_tokens:
        raise InputError(
            "add_special_tokens=False is for single texts; how this model's queries and documents are put together "
            "is its own",
            parameter="add_special_tokens",
            value=False,
        )


def _join(runner: RequestRunner, request: ScoreRequest, sides: _Sides, scores: NDArray[np.float32]) -> Scores:
    """Make an answer a pair: both requests' numbers, both texts' tokens with the padding token between them."""
    between = [runner.manifest.tokenization.pad_token_id]
    both = [(sides[0][query], sides[1][document]) for query, document in request.pairs]
    return [
        ScoringRequestOutput(
            request_id=f"{query.request_id}_{document.request_id}",
            outputs=ScoringOutput(float(score)),
            prompt_token_ids=query.prompt_token_ids + between + document.prompt_token_ids,
            num_truncated_tokens=query.num_truncated_tokens + document.num_truncated_tokens,
        )
        for (query, document), score in zip(both, scores, strict=True)
    ]
