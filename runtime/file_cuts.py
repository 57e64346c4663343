"""Calls of a task's method on a part of a longer list: cut texts counted, messages that say which part."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from poolgraph.errors import InputError, TruncationWarning

Value = TypeVar("Value")


def call_counting_cuts(call: Callable[[], Value], first_index: int) -> tuple[Value, int]:
    """Call a task's method on the items from ``first_index`` on.

    Args:
        call: The call.
        first_index: Index in the whole input of the first item that the call is about.

    Returns:
        What it returned, and how many texts it warned of having cut; other warnings are passed on.

    Raises:
        InputError: as the call, with the place of the items, by whose own count its message goes.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = call()
        except InputError as error:
            if first_index == 0:
                raise
            place = f"counted from item {first_index} of the input"
            raise InputError(f"{place}: {error.message}", parameter=error.parameter, value=error.value) from error
    num_cut = 0
    for warning in caught:
        if isinstance(warning.message, TruncationWarning):
            num_cut += warning.message.num_cut
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return value, num_cut
