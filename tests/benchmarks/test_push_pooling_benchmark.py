"""The benchmark of pushed-down pooling: how rounds add up."""

from __future__ import annotations

import pytest


def test_summary_of_rounds() -> None:
    from push_pooling import summarize

    times = ((0.5, 0.6), (0.4, 0.6), (0.9, 0.6))
    rounds = [
        {"with": {"median_s": one, "answer": [1.0, 0.0]}, "without": {"median_s": other, "answer": [2.0, 0.0]}}
        for one, other in times
    ]
    row = summarize(rounds)
    assert (row["with"], row["without"]) == (0.5, 0.6)
    assert row["ratio"] == pytest.approx(1.2)
    assert row["min_cosine"] == pytest.approx(1.0)
    rounds[1]["with"]["answer"] = [0.0, 3.0]
    assert summarize(rounds)["min_cosine"] == pytest.approx(0.0)
