"""How the caller of ``LLM`` wants prompts tokenized: ``tokenization_kwargs`` and its older spelling."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from poolgraph.config import check_truncation
from poolgraph.errors import InputError

TruncationSide = Literal["left", "right"]

_KEYS: Final = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens")
_CUTS: Final = (True, "longest_first")
_KEEPS: Final = (None, False, "do_not_truncate")

_HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "padding": (None, False, "do_not_pad"),
    "pad_prompt_tokens": (None,),
    "needs_detokenization": (None, False, True),
}
"""Keys of vLLM's whose values here ask for nothing that would change an answer."""


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


def parse_tokenization_kwargs(
    tokenization_kwargs: Mapping[str, Any] | None, *, truncate_prompt_tokens: int | None = None
) -> TokenizationOptions:
    """Read ``tokenization_kwargs``; a key without effect is warned about.

    ``truncation=True``, with ``max_length`` or for the model's limit, is transformers' way to say
    ``truncate_prompt_tokens``.

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
    wanted = [given.pop("truncate_prompt_tokens", None), _pop_truncation(given), truncate_prompt_tokens]
    known = {name: given.pop(name) for name in _KEYS if given.get(name) is not None}
    _warn_of_rest(given)
    return TokenizationOptions(truncate_prompt_tokens=_agree(wanted), **known)


def _pop_truncation(given: dict[str, Any]) -> int | None:
    """Take transformers' keys about truncation out of ``given`` and return the tokens to keep, -1 for the limit."""
    truncation = given.get("truncation")
    if truncation in _CUTS:
        del given["truncation"]
        longest = given.pop("max_length", None)
        return -1 if longest is None else longest
    if truncation in _KEEPS:
        given.pop("truncation", None)
    return None


def _agree(wanted: list[int | None]) -> int | None:
    """Return the one truncation that was asked for, None where none was.

    Raises:
        InputError: there are two different ones.
    """
    given = [value for value in wanted if value is not None]
    for value in given[1:]:
        if value != given[0]:
            raise InputError(
                f"truncate_prompt_tokens={value} contradicts tokenization_kwargs, which say {given[0]}; give it once",
                parameter="truncate_prompt_tokens",
                value=value,
            )
    return given[0] if given else None


def _warn_of_rest(given: Mapping[str, Any]) -> None:
    rest = [name for name, value in given.items() if name not in _KEYS and value not in _HARMLESS.get(name, ())]
    if rest:
        message = (
            f"tokenization_kwargs {sorted(rest, key=str)} have no effect; "
            f"those with one are {[*_KEYS, 'truncation', 'max_length']}"
        )
        # The caller of LLM's method, past read_options and parse_tokenization_kwargs.
        warnings.warn(message, UserWarning, stacklevel=5)
