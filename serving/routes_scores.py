"""``/score`` with its versions: pairs of texts to scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.outputs import ScoringRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt, parse_score_data
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.score_request import plan_score_request
from poolgraph.runtime.score_requests import answer_scores
from poolgraph.serving.answers import count_usage, describe_use, now
from poolgraph.serving.chat import join_parts
from poolgraph.serving.encodings import check_finite
from poolgraph.serving.endpoint import TASK_ERRORS, Answer, Call, Endpoint, answer_json
from poolgraph.serving.request_fields import check_common, check_number, check_size, plan_tokenization, plan_urgency
from poolgraph.serving.routing import choose_runner, find_model, show_name
from poolgraph.serving.schema_scores import ScoreAnswerItem, ScoreBody, ScoreContent, ScoreResponse, ScoringFields

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel
    from poolgraph.serving.urgency import Urgency

_SIDES: Final = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Both sides of the pairs of a request."""

    queries: list[ParsedPrompt]
    documents: list[ParsedPrompt]
    num_chars: int


async def create_scores(call: Call, body: ScoreBody) -> Answer:
    """Score pairs, in the order of the documents."""
    model = find_model(call.context.registry, body.model, "score", "Scoring")
    pairs = read_pairs(*_choose_sides(body), model, call)
    outputs = await score_pairs(call, body, model, pairs)

    def build() -> Answer:
        check_finite([output.outputs.score for output in outputs])
        items = [
            ScoreAnswerItem(index=index, score=output.outputs.score, **describe_use(output))
            for index, output in enumerate(outputs)
        ]
        return answer_json(
            ScoreResponse(
                id=call.name("score", body.request_id),
                created=now(),
                model=body.model or show_name(model),
                data=items,
                usage=count_usage(outputs),
            )
        )

    return await call.encode(model, build, len(outputs))


def read_pairs(queries: Any, documents: Any, model: ServedModel, call: Call) -> Pairs:
    """Read both sides of a request.

    Raises:
        InputError: something that is no text.
        RequestTooLarge: too many texts, or too long a text.
    """
    for side in (queries, documents):
        check_number(side, call.context.settings, "documents")
    sides = [_read_side(side, model.manifest.architecture) for side in (queries, documents)]
    sizes = [check_size(side, call.context.settings, "documents") for side in sides]
    return Pairs(queries=sides[0], documents=sides[1], num_chars=sum(sizes))


def _read_side(data: Any, architecture: str) -> list[ParsedPrompt]:
    items = data if isinstance(data, list) else [data]
    plain = [_read_content(item, architecture) if isinstance(item, ScoreContent) else item for item in items]
    return parse_score_data(plain, architecture=architecture)


def _read_content(item: ScoreContent, architecture: str) -> str:
    if (item.text is None) == (item.content is None):
        raise InputError("a text in an object is its `text`, or its `content` in parts", parameter="documents")
    return join_parts(item.content or (), architecture) if item.text is None else item.text


def _choose_sides(body: ScoreBody) -> tuple[Any, Any]:
    for left, right in _SIDES:
        sides = getattr(body, left), getattr(body, right)
        if None not in sides:
            return sides
    shown = ", ".join(f"(`{left}`, `{right}`)" for left, right in _SIDES)
    raise InputError(f"a pair of fields must be given: one of {shown}", parameter="queries")


async def score_pairs(call: Call, body: ScoringFields, model: ServedModel, pairs: Pairs) -> list[ScoringRequestOutput]:
    """Score the pairs of a request, by its fields.

    Raises:
        PoolgraphError: an option or a text is not acceptable, or the model could not answer.
    """
    check_common(body, model)
    settings = call.context.settings
    if body.chat_template is not None and not settings.trust_request_chat_template:
        raise InputError(
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused chat template with untrusted source.",
            parameter="chat_template",
        )
    options = RequestOptions(
        pooling_params=_plan_params(body),
        use_tqdm=False,
        tokenization=plan_tokenization(body.truncate_prompt_tokens, body.truncation_side, model),
    )
    return await answer_pairs(model, pairs, options, plan_urgency(body, settings), template=_read_template(body))


def _read_template(body: ScoringFields) -> str | None:
    """Return the request's own template; never a name or a file, which only the server's operator may give."""
    template = body.chat_template
    if template is not None and "{{" not in template and "{%" not in template:
        raise InputError("chat_template must be the template itself", parameter="chat_template")
    return template


def _plan_params(body: ScoringFields) -> PoolingParams:
    variables = dict(body.chat_template_kwargs or {})
    if body.instruction is not None:
        variables = {"instruction": body.instruction} | variables
    extra = {
        "max_tokens_per_query": body.max_tokens_per_query or None,
        "max_tokens_per_doc": body.max_tokens_per_doc or None,
        "chat_template_kwargs": variables or None,
    }
    given = {name: value for name, value in extra.items() if value is not None}
    return PoolingParams(use_activation=body.use_activation, extra_kwargs=given or None)


async def answer_pairs(
    model: ServedModel,
    pairs: Pairs,
    options: RequestOptions,
    urgency: Urgency,
    *,
    template: str | None = None,
    refuses_long: bool = False,
) -> list[ScoringRequestOutput]:
    """Score the pairs of a request, all of them as one piece of work.

    Args:
        model: Answers.
        pairs: The pairs.
        options: How texts become tokens, and answers what is asked for.
        urgency: How soon.
        template: Score template of the request.
        refuses_long: Whether too long a pair is an error, whatever the server does with those.

    Raises:
        PoolgraphError: a text is not acceptable, or the model could not answer.
    """
    runner = choose_runner(model, refuses_long=refuses_long)
    request = plan_score_request(runner, pairs.queries, pairs.documents, options, template)
    return await model.answer(lambda: answer_scores(runner, request, count()), urgency, num_chars=pairs.num_chars)


SCORE: Final = Endpoint(
    method="POST",
    path="/score",
    function=create_scores,
    summary="Score pairs of texts (vLLM)",
    body_type=ScoreBody,
    answer_type=ScoreResponse,
    statuses=TASK_ERRORS,
    tag="vLLM",
)

SCORE_ROUTES: Final = (SCORE, replace(SCORE, path="/v1/score"))
