"""What ``LLM`` accepts as prompts, and prompts to tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Integral
from typing import Any, Final, TypeAlias, TypedDict, TypeGuard

from poolgraph.errors import InputError
from poolgraph.runtime.tokenization import TokenizationOptions
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

ParsedPrompt: TypeAlias = str | list[int]
"""A text, or the token ids of one prompt."""


class TextPrompt(TypedDict):
    """A prompt given as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt given as token ids."""

    prompt_token_ids: Sequence[int]


Prompt: TypeAlias = str | Sequence[int] | TextPrompt | TokensPrompt
Prompts: TypeAlias = Prompt | Sequence[Prompt]
ScoreData: TypeAlias = Prompts | Mapping[str, Any] | Sequence[Mapping[str, Any]]

_ALLOWED: Final = 'a str, a list of token ids, {"prompt": str} or {"prompt_token_ids": [...]}'
_MULTIMODAL_KEYS: Final = ("multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs")
_BYTES: Final = bytes | bytearray | memoryview
"""Sequences of ints that are no token ids."""
_TEXT_KEYS: Final = frozenset({"prompt", "prompt_token_ids", "cache_salt"})


def parse_prompts(prompts: Prompts, *, architecture: str = "this model") -> list[ParsedPrompt]:
    """Turn one prompt, or a sequence of prompts of any kinds, into texts and lists of token ids.

    A sequence of ints is one prompt given as token ids.

    Args:
        prompts: The prompts as the caller gave them; never changed.
        architecture: Named in the error about multimodal prompts.

    Raises:
        InputError: no prompt at all, or something that is not a prompt.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence) or isinstance(prompts, _BYTES):
        return [_parse_prompt(prompts, "prompts", architecture)]
    if not prompts:
        raise InputError("You must pass at least one prompt", parameter="prompts", value=prompts)
    if _are_token_ids(prompts):
        return [[int(token) for token in prompts]]
    return [_parse_prompt(prompt, f"prompts[{index}]", architecture) for index, prompt in enumerate(prompts)]


def parse_score_data(data: ScoreData, *, architecture: str = "this model") -> list[ParsedPrompt]:
    """Turn one side of the pairs that are scored into texts and lists of token ids.

    Args:
        data: As for ``parse_prompts``; or ``{"content": [...]}`` with parts ``{"type": "text", "text": str}``, joined
            by newlines; or none at all, which ``plan_pairs`` refuses.
        architecture: Named in the error about multimodal content.

    Raises:
        InputError: something that is not a text, or content that is not text.
    """
    if isinstance(data, list | tuple):
        if not data:
            return []
        return parse_prompts([_join_content(item, architecture) for item in data], architecture=architecture)
    return parse_prompts(_join_content(data, architecture), architecture=architecture)


def _join_content(item: Any, architecture: str) -> Any:
    """Return the text of a content dict, anything else as it is."""
    if not isinstance(item, Mapping) or "content" not in item:
        return item
    parts = item["content"]
    if not isinstance(parts, list | tuple) or not parts or not all(_is_text_part(part) for part in parts):
        raise InputError(
            f"MultiModalParam is not supported for {architecture}; its content must be parts "
            '{"type": "text", "text": str}',
            parameter="content",
        )
    return "\n".join(part["text"] for part in parts)


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _parse_prompt(prompt: object, name: str, architecture: str) -> ParsedPrompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        return _parse_mapping(prompt, name, architecture)
    if isinstance(prompt, Sequence) and not isinstance(prompt, _BYTES) and _are_token_ids(prompt):
        return [int(token) for token in prompt]
    raise InputError(f"{name} must be {_ALLOWED}, not {_describe(prompt)}", parameter="prompts")


def _parse_mapping(prompt: Mapping[Any, Any], name: str, architecture: str) -> ParsedPrompt:
    if "data" in prompt:
        raise InputError("The 'data' field is only supported for the 'plugin' pooling task.", parameter="prompts")
    if any(_is_given(prompt.get(key)) for key in _MULTIMODAL_KEYS):
        raise InputError(f"MultiModalParam is not supported for {architecture}", parameter="prompts")
    if unknown := [key for key in prompt if key not in _TEXT_KEYS and key not in _MULTIMODAL_KEYS]:
        raise InputError(f"{name} has unknown keys {unknown}; a prompt is {_ALLOWED}", parameter="prompts")
    token_ids = prompt.get("prompt_token_ids")
    if token_ids is not None:
        if isinstance(token_ids, str | Mapping):
            raise InputError(f"{name}['prompt_token_ids'] must be a list of ints, not {_describe(token_ids)}")
        return _parse_prompt(token_ids, f"{name}['prompt_token_ids']", architecture)
    text = prompt.get("prompt")
    if not isinstance(text, str):
        raise InputError(f"{name}['prompt'] must be a str, not {_describe(text)}", parameter="prompts")
    return text


def _is_given(value: object) -> bool:
    """Whether a field of a prompt holds anything; arrays have no truth of their own."""
    return value is not None and not (isinstance(value, Mapping | Sequence) and not value)


def _are_token_ids(values: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return all(type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool)) for value in values)


def _describe(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | _BYTES):
        return f"a {type(value).__name__} of {sorted({type(item).__name__ for item in value})}"
    return type(value).__name__


def encode_prompts(
    tokenizer: TextTokenizer,
    prompts: Sequence[ParsedPrompt],
    options: TokenizationOptions,
    truncations: Sequence[int | None],
    *,
    prefix: str = "",
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize prompts of any kinds, in their order.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts and token ids.
        options: What holds for all of them.
        truncations: For each prompt how many tokens to keep, -1 for the model's limit, None for ``options``.
        prefix: Put before each text.
        first_index: Index of the first prompt in the caller's own list, for messages.

    Raises:
        InputError: a prompt is too long or has no token, or a token id is out of vocabulary.
    """
    keeps = [options.truncate_prompt_tokens if own is None else own for own in truncations]
    encoded: list[EncodedText] = []
    for (is_text, keep), run in groupby(
        zip(prompts, keeps, strict=True), lambda row: (isinstance(row[0], str), row[1])
    ):
        together = [prompt for prompt, _ in run]
        if is_text:
            encoded += tokenizer.encode(
                [prompt for prompt in together if isinstance(prompt, str)],
                prompt=prefix,
                truncate_to=keep,
                truncation_side=options.truncation_side,
                add_special_tokens=options.add_special_tokens,
                first_index=first_index + len(encoded),
            )
        else:
            encoded += [
                tokenizer.encode_ids(prompt, truncate_to=keep, truncation_side=options.truncation_side)
                for prompt in together
                if not isinstance(prompt, str)
            ]
    return encoded
