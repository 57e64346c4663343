"""What ``LLM`` accepts as prompts, and how the caller wants them tokenized."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeGuard

from poolgraph.config import check_truncation
from poolgraph.errors import InputError
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
_TEXT_KEYS: Final = frozenset({"prompt", "prompt_token_ids", "cache_salt"})

TruncationSide = Literal["left", "right"]


def parse_prompts(prompts: Prompts, *, architecture: str = "this model") -> list[ParsedPrompt]:
    """Turn one prompt, or a sequence of prompts of any kinds, into texts and lists of token ids.

    A sequence of ints is one prompt given as token ids.

    Args:
        prompts: The prompts as the caller gave them; never changed.
        architecture: Named in the error about multimodal prompts.

    Raises:
        InputError: no prompt at all, or something that is not a prompt.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
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
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and _are_token_ids(prompt):
        return [int(token) for token in prompt]
    raise InputError(f"{name} must be {_ALLOWED}, not {_describe(prompt)}", parameter="prompts")


def _parse_mapping(prompt: Mapping[Any, Any], name: str, architecture: str) -> ParsedPrompt:
    if "data" in prompt:
        raise InputError("The 'data' field is only supported for the 'plugin' pooling task.", parameter="prompts")
    if any(prompt.get(key) for key in _MULTIMODAL_KEYS):
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


def _are_token_ids(values: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return all(type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool)) for value in values)


def _describe(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a {type(value).__name__} of {sorted({type(item).__name__ for item in value})}"
    return type(value).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizationOptions:
    """How prompts become tokens: the keys of ``tokenization_kwargs`` that have an effect."""

    truncate_prompt_tokens: int | None = None
    truncation_side: TruncationSide | None = None
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        limit = self.truncate_prompt_tokens
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise InputError(
                f"truncate_prompt_tokens must be an int, not {type(limit).__name__}",
                parameter="truncate_prompt_tokens",
                value=limit,
            )
        check_truncation(limit)
        if self.truncation_side not in (None, "left", "right"):
            raise InputError(
                "`truncation_side` must be either 'left' or 'right'.",
                parameter="truncation_side",
                value=self.truncation_side,
            )
        if not isinstance(self.add_special_tokens, bool):
            raise InputError(
                f"add_special_tokens must be a bool, not {type(self.add_special_tokens).__name__}",
                parameter="add_special_tokens",
                value=self.add_special_tokens,
            )


_TOKENIZATION_KEYS: Final = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens")


def parse_tokenization_kwargs(
    tokenization_kwargs: Mapping[str, Any] | None, *, truncate_prompt_tokens: int | None = None
) -> TokenizationOptions:
    """Read ``tokenization_kwargs``; a key without effect is warned about.

    Args:
        tokenization_kwargs: As the caller gave them; never changed.
        truncate_prompt_tokens: The older argument of the same name.

    Raises:
        InputError: a wrong value, or two different truncations.
    """
    if tokenization_kwargs is not None and not isinstance(tokenization_kwargs, Mapping):
        raise InputError(
            f"tokenization_kwargs must be a mapping, not {type(tokenization_kwargs).__name__}",
            parameter="tokenization_kwargs",
            value=tokenization_kwargs,
        )
    given = dict(tokenization_kwargs or {})
    known = {name: given.pop(name) for name in _TOKENIZATION_KEYS if given.get(name) is not None}
    if unknown := sorted(name for name in given if name not in _TOKENIZATION_KEYS):
        message = f"tokenization_kwargs {unknown} have no effect; those with one are {list(_TOKENIZATION_KEYS)}"
        warnings.warn(message, UserWarning, stacklevel=4)
    older = truncate_prompt_tokens
    if older is not None and known.setdefault("truncate_prompt_tokens", older) != older:
        raise InputError(
            f"truncate_prompt_tokens={older} contradicts tokenization_kwargs, "
            f"which say {known['truncate_prompt_tokens']}; give it once",
            parameter="truncate_prompt_tokens",
            value=older,
        )
    return TokenizationOptions(**known)


def encode_prompts(
    tokenizer: TextTokenizer,
    prompts: Sequence[ParsedPrompt],
    options: TokenizationOptions,
    truncations: Sequence[int | None],
) -> list[EncodedText]:
    """Tokenize prompts of any kinds, in their order.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts and token ids.
        options: What holds for all of them.
        truncations: For each prompt how many tokens to keep, -1 for the model's limit, None for ``options``.

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
                truncate_to=keep,
                truncation_side=options.truncation_side,
                add_special_tokens=options.add_special_tokens,
                first_index=len(encoded),
            )
        else:
            encoded += [
                tokenizer.encode_ids(prompt, truncate_to=keep, truncation_side=options.truncation_side)
                for prompt in together
                if not isinstance(prompt, str)
            ]
    return encoded
