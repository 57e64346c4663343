"""Score requests of ``LLM`` to answers, one function a kind of scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.finish import finish_rows
from poolgraph.runtime.late_interaction import TO_MODEL_LIMIT, Side, SideRules, encode_side, resolve_side, scored_tokens
from poolgraph.runtime.maxsim import maxsim_pairs
from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput, ScoringOutput, ScoringRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt
from poolgraph.runtime.requests import RequestRunner, request_progress
from poolgraph.runtime.score_inputs import ScoreOptions
from poolgraph.runtime.score_pairs import cosine_scores
from poolgraph.runtime.score_request import ScoreRequest, ScoringKind
from poolgraph.runtime.text_cuts import cut_texts
from poolgraph.runtime.tokenizer import EncodedText

Scores = list[ScoringRequestOutput]
RequestIds = Iterator[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """One prompt of a pair that is answered alone: its request's number, its tokens, its vectors."""

    request_id: str
    prompt_token_ids: list[int]
    num_truncated_tokens: int
    data: NDArray[np.float32]


def score_by_cross_encoder(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Scores:
    """Score each pair in one run of the classifier; an answer has the tokens of its pair."""
    _check_tokenization(request)
    queries, documents = request.texts("a cross-encoder")
    (finish,) = runner.plan_finishes([request.params], "classify")
    variables = dict(request.kwargs.chat_template_kwargs)
    options = ScoreOptions(
        instruction=variables.pop("instruction", None),
        template=request.template,
        template_kwargs=variables,
        max_tokens_per_query=request.kwargs.max_tokens_per_query,
        max_tokens_per_doc=request.kwargs.max_tokens_per_doc,
        truncate_to=request.truncate_to(),
    )
    encoded = runner.model.encode_scoring_pairs(queries, documents, request.pairs, options, tokenizer=runner.tokenizer)
    with request_progress(request.options.use_tqdm, len(encoded)) as on_progress:
        raw = runner.model.run_sequence(encoded, on_progress=on_progress)
    return [
        ScoringRequestOutput(
            request_id=str(number),
            outputs=ScoringOutput(float(score)),
            prompt_token_ids=text.input_ids.tolist(),
            num_truncated_tokens=text.num_truncated_tokens,
        )
        for text, (score,), number in zip(encoded, finish_rows(raw, finish), request_ids, strict=False)
    ]


def score_by_cosine(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Scores:
    """Score each pair by the cosine of its embeddings; every text is embedded once."""
    answers = _run_prompts(runner, request, "embed", request_ids, use_activation=True)
    vectors = [np.stack([answer.data for answer in side]) for side in answers]
    scores = cosine_scores(vectors[0], vectors[1], list(request.pairs))
    return _join(runner, request, answers, scores)


def score_by_maxsim(runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds) -> Scores:
    """Score each pair by MaxSim of its token embeddings, encoded as the checkpoint defines queries and documents."""
    late = runner.manifest.late_interaction
    if late is None or request.kwargs.plain_late_interaction:
        answers = _run_prompts(runner, request, "token_embed", request_ids)
        mean = False
    else:
        answers = _run_sides(runner, request, request_ids)
        mean = runner.manifest.similarity_fn_name == "meanmaxsim"
    vectors = [[answer.data for answer in side] for side in answers]
    return _join(runner, request, answers, maxsim_pairs(vectors[0], vectors[1], request.pairs, mean=mean))


SCORERS: Final[Mapping[ScoringKind, Callable[[RequestRunner, ScoreRequest, RequestIds], Scores]]] = MappingProxyType(
    {
        "cross_encoder": score_by_cross_encoder,
        "bi_encoder": score_by_cosine,
        "late_interaction": score_by_maxsim,
    }
)
"""How each kind of model scores pairs. All of them raise InputError for what is not acceptable."""


def _run_prompts(
    runner: RequestRunner, request: ScoreRequest, task: str, request_ids: RequestIds, **changes: Any
) -> tuple[list[_Answer], list[_Answer]]:
    """Answer the texts of both sides as plain prompts, queries first."""
    options = replace(request.options, pooling_params=replace(request.params, **changes))
    queries = _cut(runner, request.queries, request.kwargs.max_tokens_per_query)
    documents = _cut(runner, request.documents, request.kwargs.max_tokens_per_doc)
    prompts = [prompt for prompt, _ in [*queries, *documents]]
    outputs = runner.run(prompts, task, options, request_ids)
    cuts = [num_cut for _, num_cut in [*queries, *documents]]
    answers = [_answer(output, num_cut) for output, num_cut in zip(outputs, cuts, strict=True)]
    return answers[: len(queries)], answers[len(queries) :]


def _answer(output: PoolingRequestOutput[PoolingOutput], num_cut: int) -> _Answer:
    return _Answer(
        request_id=output.request_id,
        prompt_token_ids=output.prompt_token_ids,
        num_truncated_tokens=output.num_truncated_tokens + num_cut,
        data=output.outputs.data,
    )


def _cut(
    runner: RequestRunner, prompts: Sequence[ParsedPrompt], max_tokens: int | None
) -> list[tuple[ParsedPrompt, int]]:
    """Keep the first tokens of each prompt; return what is kept and how many tokens were cut off."""
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


def _run_sides(
    runner: RequestRunner, request: ScoreRequest, request_ids: RequestIds
) -> tuple[list[_Answer], list[_Answer]]:
    """Answer the texts of both sides as the checkpoint defines queries and documents, queries first."""
    _check_tokenization(request)
    (finish,) = runner.plan_finishes([request.params], "token_embed")
    queries, documents = request.texts("late interaction by queries and documents")
    encoded = [
        *_encode_side(runner, request, "query", queries, request.kwargs.max_tokens_per_query),
        *_encode_side(runner, request, "document", documents, request.kwargs.max_tokens_per_doc),
    ]
    with request_progress(request.options.use_tqdm, len(encoded)) as on_progress:
        raw = runner.model.run_token([text for _, text, _ in encoded], on_progress=on_progress)
    answers = [
        _Answer(
            request_id=str(number),
            prompt_token_ids=text.input_ids.tolist(),
            num_truncated_tokens=text.num_truncated_tokens + num_cut,
            data=finish_rows(rows[scored_tokens(rules, text.input_ids)], finish),
        )
        for (rules, text, num_cut), rows, number in zip(encoded, raw, request_ids, strict=False)
    ]
    return answers[: len(queries)], answers[len(queries) :]


def _encode_side(
    runner: RequestRunner, request: ScoreRequest, side: Side, texts: Sequence[str], max_tokens: int | None
) -> list[tuple[SideRules, EncodedText, int]]:
    """Return for each text of a side the side's rules, its tokens and how many were cut off before."""
    rules = resolve_side(runner.manifest, side)
    limit = request.truncate_to()
    if limit is not None and limit != TO_MODEL_LIMIT:
        rules = replace(rules, max_tokens=limit if rules.max_tokens is None else min(limit, rules.max_tokens))
    cuts = cut_texts(runner.tokenizer, texts, max_tokens)
    truncate = True if limit == TO_MODEL_LIMIT else None
    encoded = encode_side(runner.tokenizer, rules, [cut.text for cut in cuts], truncate=truncate)
    return [(rules, text, cut.num_truncated_tokens) for text, cut in zip(encoded, cuts, strict=True)]


def _check_tokenization(request: ScoreRequest) -> None:
    """Refuse options that belong to single texts.

    Raises:
        InputError: naming the option.
    """
    tokenization = request.options.tokenization()
    if tokenization.truncation_side is not None or not tokenization.add_special_tokens:
        name = "add_special_tokens" if tokenization.truncation_side is None else "truncation_side"
        raise InputError(
            f"{name} is for single texts; how this model's queries and documents are put together is its own",
            parameter=name,
            value=getattr(tokenization, name),
        )


def _join(
    runner: RequestRunner,
    request: ScoreRequest,
    answers: tuple[list[_Answer], list[_Answer]],
    scores: NDArray[np.float32],
) -> Scores:
    """Make an answer a pair: both requests' numbers, both texts' tokens with the padding token between them."""
    between = [runner.manifest.tokenization.pad_token_id]
    both = [(answers[0][query], answers[1][document]) for query, document in request.pairs]
    return [
        ScoringRequestOutput(
            request_id=f"{query.request_id}_{document.request_id}",
            outputs=ScoringOutput(float(score)),
            prompt_token_ids=query.prompt_token_ids + between + document.prompt_token_ids,
            num_truncated_tokens=query.num_truncated_tokens + document.num_truncated_tokens,
        )
        for (query, document), score in zip(both, scores, strict=True)
    ]
