"""What a served model's probe must reach where its tokens may be sent to other experts."""

from __future__ import annotations

import numpy as np

from poolgraph.runtime.compare import THRESHOLDS, allow_other_experts, compare_answers
from poolgraph.serving.probe import _for_one

ROWS = np.eye(3, dtype=np.float32)


def test_such_a_probe_is_held_to_what_is_least() -> None:
    threshold = _for_one(allow_other_experts(THRESHOLDS["int8"]), {0: ROWS}, 0, lambda rows: rows)
    assert compare_answers([ROWS], [ROWS + 1], threshold).passed  # a cosine of 0.8
    assert not compare_answers([ROWS], [np.zeros_like(ROWS)], threshold).passed
    assert not compare_answers([ROWS], [-ROWS], threshold).passed
