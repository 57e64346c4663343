"""``/tokenize`` and ``/detokenize``: vLLM's requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from poolgraph.serving.schema_common import ChatMessage

TokenId = Annotated[int, Meta(ge=0)]


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text, or a conversation, to tokenize; nothing is cut.

    Attributes:
        model: A name of ``/v1/models``; may be left out where one model is served.
        prompt: The text.
        add_special_tokens: Default true for a text and false for messages.
        return_token_strs: Whether the tokens' own texts are returned too.
        messages: A conversation.
        add_generation_prompt: Whether the template opens the assistant's turn.
        continue_final_message: Whether the last message stays open.
        chat_template: Refused unless the server runs with --trust-request-chat-template.
        chat_template_kwargs: Further variables of the template.
    """

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    messages: list[ChatMessage] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Tokens to turn into text, special tokens included."""

    model: str | None = None
    tokens: list[TokenId]


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    """The text of tokens."""

    prompt: str
