"""What requests and answers of several routes share, as they are on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from poolgraph.runtime.tokenization import TruncationSide

Count = Annotated[int, Meta(ge=0)]
"""A number of things; 0 often stands for all of them."""

TokenLimit = Annotated[int, Meta(ge=-1, description="Tokens kept of a longer text; -1 for the model's limit")]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1, description="Lower comes first")]
Seconds = Annotated[float, Meta(ge=0.1, description="Seconds in which the answer is wanted, within the server's limit")]
RequestId = Annotated[str, Meta(min_length=1, max_length=128)]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=1024)]


class CommonFields(msgspec.Struct, kw_only=True):
    """Fields of every request in vLLM's API; fields that are not listed are accepted and change nothing.

    Attributes:
        model: A name of ``/v1/models``; may be left out where one model is served.
        user: Of no effect.
        truncate_prompt_tokens: Tokens kept of a longer text, special tokens included; -1 means the model's limit.
        truncation_side: Where tokens are cut off; null is the model's own side.
        padding: Only ``do_not_pad``: answers do not depend on padding here.
        request_id: Part of the answer's id, unless the header X-Request-Id is there.
        priority: Lower comes first.
        timeout: Seconds in which the answer is wanted.
        mm_processor_kwargs: Refused: no model here takes images or sound.
        cache_salt: Of no effect: answers are cached by what they depend on.
    """

    model: str | None = None
    user: str | None = None
    truncate_prompt_tokens: TokenLimit | None = None
    truncation_side: TruncationSide | None = None
    padding: Literal["max_length", "do_not_pad"] | None = None
    request_id: RequestId | None = None
    priority: Priority = 0
    timeout: Seconds | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    cache_salt: CacheSalt | None = None


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message; only ``text`` is understood, other types are refused by name."""

    type: str = "text"
    text: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None


TextInput = str | list[str | int | ChatMessage | list[int | ChatMessage]]
"""A text, the token ids of one, a list of both, a conversation or a list of conversations."""


class TextFields(CommonFields, kw_only=True):
    """Texts, or conversations where the model's tokenizer has a chat template.

    Attributes:
        input: Texts; exactly one of ``input`` and ``messages`` is given.
        add_special_tokens: Default true for texts and false for conversations.
        messages: A conversation, or a list of conversations.
        add_generation_prompt: Whether the template opens the assistant's turn.
        continue_final_message: Whether the last message stays open.
        chat_template: Refused unless the server runs with --trust-request-chat-template.
        chat_template_kwargs: Further variables of the template.
    """

    input: TextInput | None = None
    add_special_tokens: bool | None = None
    messages: list[ChatMessage | list[ChatMessage]] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class EncodingFields(TextFields, kw_only=True):
    """Texts, and how their vectors are written.

    Attributes:
        encoding_format: ``float`` (JSON numbers), ``base64``, ``bytes`` (raw, described in the header ``metadata``) or
            ``bytes_only`` (raw, undescribed).
        embed_dtype: Of base64 and bytes. The two fp8 types are refused.
        endianness: Of base64 and bytes.
    """

    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] = "float32"
    endianness: Literal["native", "big", "little"] = "native"


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class TokenUse(msgspec.Struct, kw_only=True):
    """What became of one text.

    Attributes:
        truncated: Whether tokens were dropped.
        tokens_used: Tokens that the model saw, special ones and what joins two texts that are embedded apart included.
        tokens_dropped: Tokens cut off.
        num_chunks: Parts that a long text was embedded in; 1 for one that was embedded whole.
    """

    truncated: bool
    tokens_used: int
    tokens_dropped: int
    num_chunks: int = 1


class ErrorDetail(msgspec.Struct, kw_only=True):
    """What went wrong: ``param`` is the field at fault, where there is one, and ``code`` the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct, kw_only=True):
    """The body of every error."""

    error: ErrorDetail
