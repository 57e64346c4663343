"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from poolgraph.errors import InputError
from poolgraph.serving.endpoint import Answer, Call, Endpoint, answer_json
from poolgraph.serving.request_fields import TextRequest, check_size, read_texts
from poolgraph.serving.routing import find_model
from poolgraph.serving.schema_tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

if TYPE_CHECKING:
    from poolgraph.serving.served_model import ServedModel

_INLINE_CHARS: Final = 4096
"""Longer texts are tokenized in a thread."""

_INLINE_TOKENS: Final = 1024
"""More tokens are turned into text in a thread."""


async def tokenize(call: Call, body: TokenizeRequest) -> Answer:
    """Return the tokens of a text, however many."""
    model = find_model(call.context.registry, body.model, None, "Tokenize")
    request = read_texts(body.prompt, body.messages, body, model, call.context.settings)
    if len(request.prompts) != 1:
        raise InputError(f"one text is tokenized a request, got {len(request.prompts)}", parameter="messages")
    if request.num_chars <= _INLINE_CHARS:
        return _tokenize(body, request, model)
    return await asyncio.to_thread(_tokenize, body, request, model)


def _tokenize(body: TokenizeRequest, request: TextRequest, model: ServedModel) -> Answer:
    tokenizer = model.runner.tokenizer
    special = not request.is_chat if body.add_special_tokens is None else body.add_special_tokens
    (text,) = [str(prompt) for prompt in request.prompts]
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=special, first_index=0)
    ids = encoding.ids
    return answer_json(
        TokenizeResponse(
            count=len(ids),
            max_model_len=tokenizer.max_model_len,
            tokens=ids,
            token_strs=[str(tokenizer.backend.id_to_token(one)) for one in ids] if body.return_token_strs else None,
        )
    )


async def detokenize(call: Call, body: DetokenizeRequest) -> Answer:
    """Return the text of tokens, special tokens included."""
    model = find_model(call.context.registry, body.model, None, "Detokenize")
    check_size([body.tokens], call.context.settings, "tokens")
    size = model.manifest.limits.vocab_size
    for token in body.tokens:
        if token >= size:
            raise InputError(
                f"Token id {token} is out of vocabulary: ids run from 0 to {size - 1}.",
                parameter="tokens",
                value=token,
            )
    decode = partial(model.runner.tokenizer.backend.decode, body.tokens, skip_special_tokens=False)
    text = decode() if len(body.tokens) <= _INLINE_TOKENS else await asyncio.to_thread(decode)
    return answer_json(DetokenizeResponse(prompt=text))


TOKENIZE: Final = Endpoint(
    method="POST",
    path="/tokenize",
    function=tokenize,
    summary="Tokenize a text (vLLM)",
    body_type=TokenizeRequest,
    answer_type=TokenizeResponse,
    statuses=(400, 404, 413, 415),
    tag="vLLM",
)

DETOKENIZE: Final = Endpoint(
    method="POST",
    path="/detokenize",
    function=detokenize,
    summary="Turn tokens into text (vLLM)",
    body_type=DetokenizeRequest,
    answer_type=DetokenizeResponse,
    statuses=(400, 404, 413, 415),
    tag="vLLM",
)
