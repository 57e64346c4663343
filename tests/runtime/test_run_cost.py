"""What a run costs beside its tokens."""

import numpy as np
import pytest

from poolgraph.runtime.buckets import RUN_COST_TOKENS
from poolgraph.runtime.run_cost import LEAST_COST, MOST_COST, fit_run_cost

SIZES = (16384, 8192, 4096, 2048, 512, 64, 8)


@pytest.mark.parametrize("cost", [64, 256, 2048, 16384])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_cost_is_found_again(cost, noise):
    rng = np.random.default_rng(cost)
    for rate in (1e-8, 5e-7, 3e-5):
        seconds = {size: rate * (cost + size) * (1 + noise * rng.standard_normal()) for size in SIZES}
        assert fit_run_cost(seconds) == cost


def test_the_cost_of_bert_base_on_an_h200():
    assert fit_run_cost({512: 2.03e-3, 8192: 4.69e-3, 16384: 8.51e-3}) in (2048, 4096)


def test_it_is_bounded():
    assert fit_run_cost({8: 1e-3, 16384: 1e-3}) == MOST_COST
    assert fit_run_cost({8: 2e-3, 16384: 1e-3}) == MOST_COST, "larger runs that took less time"
    assert fit_run_cost({8: 8e-6, 16384: 16384e-6}) == LEAST_COST
    assert fit_run_cost({8: 60_008e-9, 16384: 76_384e-9}) == MOST_COST
    assert fit_run_cost({8: 18e-6, 1024: 1034e-6}) == LEAST_COST
    assert fit_run_cost({8: 1e-6, 1024: 2048e-6}) == LEAST_COST, "small runs that took less than their share"


def test_one_size_tells_nothing():
    assert fit_run_cost({}) == fit_run_cost({512: 1e-3}) == RUN_COST_TOKENS
