"""What the answers of all routes are made of: usage, and what became of each text."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput
from poolgraph.runtime.requests import RequestOptions
from poolgraph.serving.asgi_types import Header
from poolgraph.serving.endpoint import Answer
from poolgraph.serving.request_fields import TextRequest
from poolgraph.serving.routing import choose_runner
from poolgraph.serving.schema_common import TokenUse, Usage

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel
    from poolgraph.serving.urgency import Urgency

Outputs = list[PoolingRequestOutput[PoolingOutput]]


def answer_texts(
    model: ServedModel,
    request: TextRequest,
    task: str,
    options: RequestOptions,
    urgency: Urgency,
    *,
    refuses_long: bool = False,
) -> Awaitable[Outputs]:
    """Answer the texts of a request by one task, all of them as one piece of work.

    Args:
        model: Answers.
        request: The texts.
        task: The task.
        options: How texts become tokens, and answers what is asked for.
        urgency: How soon.
        refuses_long: Whether too long a text is an error, whatever the server does with those.

    Raises:
        PoolgraphError: a text is not acceptable, or the model could not answer.
    """
    runner = choose_runner(model, refuses_long=refuses_long)
    return model.answer(
        lambda: runner.answer_prompts(request.prompts, task, options, count()),
        urgency,
        num_chars=request.num_chars,
    )


def count_usage(outputs: Sequence[PoolingRequestOutput[Any]]) -> Usage:
    """Return the tokens of a request."""
    total = sum(count_tokens(output) for output in outputs)
    return Usage(prompt_tokens=total, total_tokens=total)


def count_tokens(output: PoolingRequestOutput[Any]) -> int:
    """Return the tokens that the model ran for one text, those of all of its chunks where it was cut into some."""
    return len(output.prompt_token_ids) if output.text_chunks is None else output.text_chunks.num_tokens


def describe_use(output: PoolingRequestOutput[Any]) -> dict[str, Any]:
    """Return what became of one text, as the fields of ``TokenUse``."""
    dropped = output.num_truncated_tokens
    chunks = output.text_chunks
    return {
        "truncated": dropped > 0,
        "tokens_used": count_tokens(output),
        "tokens_dropped": dropped,
        "num_chunks": 1 if chunks is None else chunks.num_chunks,
    }


def list_use(outputs: Sequence[PoolingRequestOutput[Any]]) -> list[TokenUse]:
    """Return what became of each text."""
    return [TokenUse(**describe_use(output)) for output in outputs]


def count_values(outputs: Outputs) -> int:
    """Return how many numbers an answer holds."""
    return sum(output.outputs.data.size for output in outputs)


def use_headers(outputs: Sequence[PoolingRequestOutput[Any]]) -> tuple[Header, ...]:
    """Return the tokens used and dropped as headers, for bodies that have no place for them."""
    used = sum(count_tokens(output) for output in outputs)
    dropped = sum(output.num_truncated_tokens for output in outputs)
    return ((b"x-tokens-used", str(used).encode()), (b"x-tokens-dropped", str(dropped).encode()))


def now() -> int:
    """Return the time in seconds, as answers have it."""
    return int(time.time())


def answer_bytes(body: bytes, headers: tuple[Header, ...] = ()) -> Answer:
    """Return raw bytes as an answer."""
    return Answer(body=body, content_type=b"application/octet-stream", headers=headers)
