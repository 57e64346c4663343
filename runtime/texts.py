"""What a caller may pass as texts and as a prompt."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from poolgraph.errors import InputError, TruncationWarning
from poolgraph.graphs.manifest import Manifest

TO_MODEL_LIMIT: Final = -1
"""Stands for the model's limit where a number of tokens is asked for."""


def resolve_texts(texts: str | Sequence[str]) -> list[str]:
    """Return the texts as a list; a lone text becomes a list of one.

    Raises:
        InputError: no text at all, or something that is not a text.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | bytearray | dict) or not isinstance(texts, Iterable):
        raise InputError(f"texts must be a str or a list of str, got {type(texts).__name__}", parameter="texts")
    try:
        resolved = list(texts)
    except TypeError as error:
        # numpy's arrays of no dimension have __iter__ and refuse it.
        raise InputError(
            f"texts must be a str or a list of str, got a {type(texts).__name__} that has no items: {error}",
            parameter="texts",
            value=texts,
        ) from error
    if not resolved:
        raise InputError("You must pass at least one prompt")
    check_texts(resolved)
    return resolved


def check_texts(texts: Sequence[object], *, first_index: int = 0) -> None:
    """Check that every text is a str.

    Raises:
        InputError: naming the first that is not, by index and type.
    """
    for index, text in enumerate(texts, first_index):
        if not isinstance(text, str):
            raise InputError(f"text {index} must be a str, got {type(text).__name__}", parameter="texts", value=index)


def resolve_prompt(manifest: Manifest, *, prompt_name: str | None, prompt: str | None) -> str:
    """Return the prompt put before each text: ``prompt``, else the one called ``prompt_name``, else the default one.

    Raises:
        InputError: not a str, or the manifest has no prompt of that name.
    """
    if prompt is not None:
        if not isinstance(prompt, str):
            raise InputError(f"prompt must be a str, got {type(prompt).__name__}", parameter="prompt")
        return prompt
    name = manifest.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if not isinstance(name, str):
        raise InputError(f"prompt_name must be a str, got {type(name).__name__}", parameter="prompt_name", value=name)
    if name not in manifest.prompts:
        names = sorted(manifest.prompts)
        raise InputError(
            f"prompt name {name!r} is not one of the model's prompts {names}; pass one of them, or prompt=..."
            if names
            else f"prompt name {name!r}: the model has no prompts; leave it out, or pass prompt=...",
            parameter="prompt_name",
            value=name,
        )
    return manifest.prompts[name]


def resolve_truncation(truncate: bool | None) -> int | None:
    """Return the ``truncate_to`` that ``truncate`` stands for: the model's limit, or None.

    Raises:
        InputError: not a bool, such as a number of tokens.
    """
    if truncate is not None and not isinstance(truncate, bool | np.bool_):
        raise InputError(
            f"truncate must be a bool, not {type(truncate).__name__}: texts are cut to the model's limit; LLM cuts to "
            "any number of tokens (truncate_prompt_tokens)",
            parameter="truncate",
            value=truncate,
        )
    return TO_MODEL_LIMIT if truncate else None


def warn_of_cuts(num_cut: int, num_texts: int, manifest: Manifest, limit: int | None = None) -> None:
    """Warn once, at the caller of the function that calls this, of the texts that were cut; not if there are none.

    Args:
        num_cut: How many were.
        num_texts: Of how many.
        manifest: The model's.
        limit: Tokens of the longest text; None for what the model takes.
    """
    if num_cut:
        limit = limit or manifest.limits.max_model_len
        message = f"{num_cut} of {num_texts} texts were longer than {limit} tokens and were cut"
        warnings.warn(TruncationWarning(message, num_cut), stacklevel=3)
