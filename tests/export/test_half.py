"""Which values leave float16's range, by the largest numbers that were measured."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from little_graphs import SIZE, build

from poolgraph.errors import Float16RangeError
from poolgraph.export import half
from poolgraph.export.calibration_texts import CalibrationTexts
from poolgraph.export.half import plan_half

TEXTS = CalibrationTexts(name="two", texts=("one", "two"))
EMPTY = build(f"g (float[1,{SIZE}] x) => (float[1,{SIZE}] y) {{ y = Neg(x) }}")


def plan_of(monkeypatch: pytest.MonkeyPatch, **largest: float) -> half.HalfPlan:
    """The plan where these values are the largest, beside fifty small ones."""
    measured = {**{f"small{number}": 1.0 for number in range(50)}, **largest}
    monkeypatch.setattr(half, "_measure", lambda *_: measured)
    return plan_half(SimpleNamespace(), EMPTY, TEXTS)  # type: ignore[arg-type]


def test_values_up_to_a_quarter_of_the_range_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    quarter = 65504 / 4
    found = plan_of(monkeypatch, below=quarter - 1, at=quarter, above=quarter + 1, far=1e6)
    assert found.kept == ("at", "above", "far")
    assert found.record is not None
    assert (found.record.float32, found.record.largest, found.record.calibration) == (found.kept, 1e6, "two")


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_what_is_no_number_stays_in_float32(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_of(monkeypatch, odd=number).kept == ("odd",)


def test_a_tenth_of_the_values_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(plan_of(monkeypatch, **{f"v{number}": 1e5 for number in range(5)}).kept) == 5
    with pytest.raises(Float16RangeError, match=r"6 of 56 values .* v5 \(100,005\), v4 \(100,004\), v3 .* and more"):
        plan_of(monkeypatch, **{f"v{number}": 1e5 + number for number in range(6)})
