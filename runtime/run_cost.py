"""What a run on a device costs beside its tokens, from how long runs of several sizes took. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from poolgraph.runtime.buckets import RUN_COST_TOKENS

LEAST_COST: Final = 64
MOST_COST: Final = 32768


def fit_run_cost(seconds: Mapping[int, float]) -> int:
    """Return the tokens that take as long as what every run costs, whatever its size.

    Seconds are fitted as ``fixed + rate * tokens``, each deviation weighted by its share of the time, and ``fixed /
    rate`` is rounded to a power of two: the same buckets are then chosen again although no two measurements agree.

    Args:
        seconds: By the tokens that a run computes.

    Returns:
        From LEAST_COST to MOST_COST; RUN_COST_TOKENS where there are not two sizes to compare.
    """
    if len(seconds) < 2:
        return RUN_COST_TOKENS
    tokens, times = np.array(list(seconds)), np.array(list(seconds.values()))
    rate, fixed = np.polyfit(tokens, times, 1, w=1 / times)
    if fixed <= LEAST_COST * rate:
        return LEAST_COST
    if fixed >= MOST_COST * rate:
        return MOST_COST
    return int(2 ** round(math.log2(fixed / rate)))
