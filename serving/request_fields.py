"""Fields of a request to what the runtime takes: prompts, options, urgency; limits of the server are kept here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from poolgraph.config import LateChunkingParams, PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.prompts import ParsedPrompt, parse_prompts
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.tokenization import TokenizationOptions, TruncationSide
from poolgraph.serving.chat import ConversationFields, render_conversation
from poolgraph.serving.http_errors import RequestTooLarge
from poolgraph.serving.schema_common import ChatMessage, CommonFields
from poolgraph.serving.urgency import Urgency

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel
    from poolgraph.serving.settings import ServeSettings

_CHARS_PER_TOKEN: Final = 4
"""What a token id counts as where characters are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What a request gives to embed, classify or pool.

    Attributes:
        prompts: Texts and lists of token ids.
        num_chars: Their length, for whoever decides where they are tokenized.
        is_chat: Whether they were conversations.
    """

    prompts: list[ParsedPrompt]
    num_chars: int
    is_chat: bool = False


def read_texts(
    value: Any, messages: Any, fields: ConversationFields, model: ServedModel, settings: ServeSettings
) -> TextRequest:
    """Read texts or conversations, of which exactly one is given.

    Args:
        value: Texts, token ids, or conversations too.
        messages: A conversation or several.
        fields: How conversations become text.
        model: Whose templates they go through.
        settings: The server's limits.

    Raises:
        InputError: neither or both are there, or something that is no prompt.
        RequestTooLarge: too many texts, or too long a text.
    """
    if (value is None) == (messages is None):
        raise InputError(
            "exactly one of a text (`input`, `prompt`) and `messages` must be given",
            parameter="input" if value is None else "messages",
        )
    if messages is not None:
        return _read_chat(messages, fields, model, settings)
    if isinstance(value, list) and value and _is_chat(value[0]):
        return _read_chat(value, fields, model, settings)
    return read_prompts(value, model, settings)


def read_prompts(value: Any, model: ServedModel, settings: ServeSettings) -> TextRequest:
    """Read texts and token ids.

    Raises:
        InputError: something that is no prompt.
        RequestTooLarge: too many texts, or too long a text.
    """
    check_number(value, settings)
    prompts: list[ParsedPrompt] = (
        [value] if isinstance(value, str) else parse_prompts(value, architecture=model.manifest.architecture)
    )
    return TextRequest(prompts=prompts, num_chars=check_size(prompts, settings))


def check_number(values: Any, settings: ServeSettings, parameter: str = "input") -> None:
    """Check the length of a list of texts or messages before anything is made of it; token ids of one text pass.

    Raises:
        RequestTooLarge: too many.
    """
    if isinstance(values, list) and len(values) > settings.max_texts and not isinstance(values[0], int):
        kind = "messages in a conversation" if isinstance(values[0], ChatMessage) else "texts"
        raise RequestTooLarge(
            f"the request has {len(values)} {kind}; this server takes at most {settings.max_texts} in one request "
            "(--max-texts). Send several requests.",
            parameter=parameter,
        )


def check_size(prompts: Sequence[ParsedPrompt], settings: ServeSettings, parameter: str = "input") -> int:
    """Check the number of texts and the length of each, and return the length of all in characters.

    Raises:
        RequestTooLarge: too many texts, or too long a text.
    """
    check_number(prompts, settings, parameter)
    total = 0
    for index, prompt in enumerate(prompts):
        size = len(prompt) if isinstance(prompt, str) else len(prompt) * _CHARS_PER_TOKEN
        total += size
        if size > settings.max_text_chars:
            raise RequestTooLarge(
                f"text {index} has {size} characters; this server takes at most {settings.max_text_chars} in one text "
                "(--max-text-chars).",
                parameter=parameter,
            )
    return total


def _is_chat(value: object) -> bool:
    return isinstance(value, ChatMessage) or (isinstance(value, list) and bool(value) and _is_chat(value[0]))


def _read_chat(
    value: list[Any], fields: ConversationFields, model: ServedModel, settings: ServeSettings
) -> TextRequest:
    if not value:
        raise InputError("messages must hold at least one message", parameter="messages")
    conversations = value if isinstance(value[0], list) else [value]
    check_number(conversations, settings, "messages")
    for index, messages in enumerate(conversations):
        check_number(messages, settings, "messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(one, ChatMessage) for one in messages):
            raise InputError(f"conversation {index} must be a list of messages, at least one", parameter="messages")
    written = [_written_text(messages) for messages in conversations]
    check_size(written, settings, "messages")
    texts: list[ParsedPrompt] = [
        render_conversation(messages, fields, model.runner, trusted=settings.trust_request_chat_template)
        for messages in conversations
    ]
    return TextRequest(prompts=texts, num_chars=check_size(texts, settings, "messages"), is_chat=True)


def _written_text(messages: Sequence[ChatMessage]) -> str:
    contents = [message.content for message in messages]
    parts = [part.text or "" for content in contents if isinstance(content, list) for part in content]
    return "".join([*parts, *(content for content in contents if isinstance(content, str))])


def plan_options(
    body: CommonFields, request: TextRequest, model: ServedModel, params: PoolingParams, *, special: bool | None
) -> RequestOptions:
    """Return the runtime's options for a request.

    Args:
        body: The request.
        request: Its texts.
        model: Their model.
        params: What is done to the answers.
        special: ``add_special_tokens`` of the request; None adds them to texts and not to conversations.

    Raises:
        InputError: a field that is refused, or a truncation beyond the model's limit.
    """
    check_common(body, model)
    return RequestOptions(
        pooling_params=params,
        use_tqdm=False,
        side=getattr(body, "side", None),
        tokenization=plan_tokenization(
            body.truncate_prompt_tokens,
            body.truncation_side,
            model,
            special=not request.is_chat if special is None else special,
        ),
    )


def plan_tokenization(
    keep: int | None, side: TruncationSide | None, model: ServedModel, *, special: bool = True
) -> TokenizationOptions:
    """Return how texts become tokens.

    Raises:
        InputError: a truncation beyond the model's limit.
    """
    if keep is not None and keep > model.manifest.limits.max_model_len:
        raise InputError(
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
            parameter="truncate_prompt_tokens",
            value=keep,
        )
    return _build_tokenization(keep, side, special)


@lru_cache(maxsize=256)
def _build_tokenization(keep: int | None, side: TruncationSide | None, special: bool) -> TokenizationOptions:
    return TokenizationOptions(truncate_prompt_tokens=keep, truncation_side=side, add_special_tokens=special)


def check_common(body: CommonFields, model: ServedModel) -> None:
    """Refuse the fields that would change an answer in vLLM and cannot here.

    Raises:
        InputError: naming the field.
    """
    if body.mm_processor_kwargs:
        raise InputError(
            f"MultiModalParam is not supported for {model.manifest.architecture}", parameter="mm_processor_kwargs"
        )
    if body.padding == "max_length":
        raise InputError(
            "padding max_length is not supported: texts are not padded, and answers do not depend on padding; "
            "leave it out",
            parameter="padding",
            value=body.padding,
        )


def refuse_normalize(value: object) -> None:
    """Refuse the older name of ``use_activation``, as vLLM does.

    Raises:
        InputError: it is given.
    """
    if value is not None:
        raise InputError("Parameter `normalize` was removed; use `use_activation` instead.", parameter="normalize")


@lru_cache(maxsize=1024)
def build_params(
    use_activation: bool | None, dimensions: int | None = None, chunk_size: int | None = None
) -> PoolingParams:
    """Return the parameters of a request; equal ones are one object."""
    chunking = None if chunk_size is None else LateChunkingParams(chunk_size)
    return PoolingParams(use_activation=use_activation, dimensions=dimensions, late_chunking_params=chunking)


def plan_urgency(body: Any, settings: ServeSettings) -> Urgency:
    """Return how soon a request wants its answer: by its own field, within the server's limit."""
    timeout = settings.request_timeout if body.timeout is None else min(body.timeout, settings.request_timeout)
    return _build_urgency(body.priority, timeout)


@lru_cache(maxsize=256)
def _build_urgency(priority: int, timeout: float) -> Urgency:
    return Urgency(priority=priority, timeout=timeout)
