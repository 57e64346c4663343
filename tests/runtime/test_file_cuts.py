"""Calls on parts of a list: cuts counted over all warnings, other warnings passed on, errors with their place."""

from __future__ import annotations

import pickle
import warnings

import pytest

from poolgraph.errors import InputError, TruncationWarning
from poolgraph.runtime.file_cuts import call_counting_cuts
from poolgraph.runtime.texts import warn_of_cuts


def test_every_warning_of_cuts_is_counted():
    def call():
        warnings.warn(TruncationWarning("3 of 8 pairs", 3), stacklevel=2)
        warnings.warn(TruncationWarning("2 of 5 texts", 2), stacklevel=2)
        return "value"

    assert call_counting_cuts(call, 7) == ("value", 5)


def test_the_warning_of_every_task_is_one_of_them():
    from fake_embedder import MANIFEST

    assert call_counting_cuts(lambda: warn_of_cuts(4, 9, MANIFEST), 0) == (None, 4)


def test_other_warnings_are_passed_on():
    def call():
        warnings.warn("3 documents without vectors", UserWarning, stacklevel=2)

    with pytest.warns(UserWarning, match="3 documents without vectors"):
        assert call_counting_cuts(call, 0) == (None, 0)


@pytest.mark.parametrize(("first_index", "place"), [(0, ""), (5, "counted from item 5 of the input: ")])
def test_errors_have_the_place_of_the_part(first_index, place):
    def call():
        raise InputError("pair 1 has 99 tokens", parameter="input_tokens", value=99)

    with pytest.raises(InputError) as caught:
        call_counting_cuts(call, first_index)
    assert str(caught.value) == f"{place}pair 1 has 99 tokens (parameter=input_tokens, value=99)"


def test_the_warning_crosses_processes():
    warning = pickle.loads(pickle.dumps(TruncationWarning("3 of 8 texts", 3)))
    assert (str(warning), warning.num_cut) == ("3 of 8 texts", 3)
