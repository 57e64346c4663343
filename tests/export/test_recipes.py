"""Recipes: what the search finds in observed rows, and what the ladder does with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from little_graphs import build, random

from poolgraph.errors import InputError
from poolgraph.export.calibration import Observation, observe, split_held_out
from poolgraph.export.calibration_texts import read_calibration
from poolgraph.export.int8 import FLOAT_SHARES, TOKEN_SHARES, choose_recipes, contrib_sets, native_sets
from poolgraph.export.int8_judge import Recipes
from poolgraph.export.recipes import GroupRecipes, Measured, measure_group, quantize_rows
from poolgraph.graphs.pipeline import CPU_INT8, Target
from poolgraph.graphs.products import find_products
from poolgraph.graphs.quantize_products import Recipe
from poolgraph.runtime.compare import Comparison

TEXT = "g (float[batch, length, 64] x) => (float[batch, length, 32] y) { y = MatMul (x, backbone__w) }"


def measure(rows: np.ndarray) -> GroupRecipes:
    (group,) = find_products(build(TEXT, backbone__w=random(64, 32)))
    return measure_group(group, Observation(rows.min(0), rows.max(0), rows))


def test_even_rows_need_no_smoothing() -> None:
    found = measure(random(256, 64, seed=1))
    assert found.static.recipe.smoothing is None
    assert found.range.recipe.smoothing is found.token.recipe.smoothing is None
    assert found.range.error < found.token.error < found.static.error < 0.02


def test_a_feature_far_above_the_others_is_smoothed() -> None:
    rows = random(256, 64, seed=1)
    rows[:, 7] *= 60
    found = measure(rows)
    assert found.static.recipe.smoothing is not None
    assert found.static.recipe.smoothing[7] > 2 * np.median(found.static.recipe.smoothing)
    plain = np.linalg.norm(quantize_rows(rows, Recipe(scheme="static", scale=rows.max() / 100)) - rows)
    assert found.static.error < 0.01 < plain / np.linalg.norm(rows) * 10


def test_rows_far_above_the_others_are_left_to_scales_a_token() -> None:
    rows = random(256, 64, seed=1) * np.exp(random(256, 1, seed=2) * 2)
    found = measure(rows)
    assert found.token.error < 0.7 * found.static.error


def test_corrections_take_the_mean_error_away() -> None:
    rows = np.abs(random(256, 64, seed=1)) + 3
    recipe = measure(rows).static.recipe
    assert recipe.correction is not None
    assert recipe.of_weights().scheme == "weights"
    assert recipe.of_weights().correction is recipe.weight_correction


def test_observations_hold_every_tokens_range(tmp_path: Path) -> None:
    model = build(TEXT, backbone__w=random(64, 32))
    feeds = [{"x": random(1, length, 64, seed=length)} for length in (3, 50)]
    found = observe(model, feeds, tmp_path)["backbone.w"]
    rows = np.concatenate([feed["x"][0] for feed in feeds])
    np.testing.assert_array_equal(found.low, rows.min(0))
    np.testing.assert_array_equal(found.high, rows.max(0))
    assert found.rows.shape == (53, 64)
    assert len(model.graph.outputs) == 1


def test_sets_go_from_the_fastest_to_the_most_careful() -> None:
    measured = {
        str(i): GroupRecipes(
            static=Measured(Recipe(scheme="static"), i / 10),
            token=Measured(Recipe(scheme="token"), i / 20),
            range=Measured(Recipe(scheme="range"), (7 - i) / 30),
        )
        for i in range(8)
    }
    sets = list(contrib_sets(measured))
    assert len(sets) == len(TOKEN_SHARES) + len(FLOAT_SHARES)
    schemes = [[recipe.scheme for recipe in recipes.values()] for recipes in sets]
    assert [found.count("static") for found in schemes] == [8, 7, 6, 4, 0, 0, 0, 0, 0, 0, 0]
    assert [len(found) for found in schemes] == [8, 8, 8, 8, 8, 7, 7, 6, 4, 2, 1]
    assert sets[1]["7"].scheme == "token"
    assert "7" not in sets[5]
    native = list(native_sets(measured))
    assert len(native) == 1 + len(FLOAT_SHARES)
    assert {recipe.scheme for recipes in native for recipe in recipes.values()} == {"range"}
    assert (len(native[0]), "0" in native[1]) == (8, False)


@dataclass
class Judge:
    """Finds the next mean cosine each time."""

    cosines: list[float]
    bar: float = 0.99

    def compare(self, recipes: Recipes, target: Target) -> Comparison:
        mean = self.cosines.pop(0)
        return Comparison(num_texts=1, min_cosine=0.9, mean_cosine=mean, max_difference=0.1, passed=mean > self.bar)


@pytest.mark.parametrize(
    ("cosines", "chosen"),
    [([0.92, 0.97, 0.95], 1), ([0.97, 0.92, 0.95], 0), ([0.92, 0.995, 0.999], 1)],
    ids=["the best of those that fail", "the first is the best", "the first that passes"],
)
def test_the_first_set_that_passes_is_taken_or_the_best(cosines: list[float], chosen: int) -> None:
    sets = [{name: Recipe(scheme="token")} for name in "abc"]
    measured = dict.fromkeys("abc", measure(random(256, 64, seed=1)))
    found = choose_recipes(Judge([*cosines]), measured, CPU_INT8, iter(sets))  # type: ignore[arg-type]
    assert found.recipes is sets[chosen]
    assert found.float32 == tuple(name for name in "abc" if name not in sets[chosen])
    assert found.found.mean_cosine == cosines[chosen]


def test_every_fourth_text_is_held_out() -> None:
    assert split_held_out(9) == ([0, 1, 2, 4, 5, 6, 8], [3, 7])


def test_calibration_files(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("one\ntwo\n")
    assert read_calibration(file).texts == ("one", "two")
    assert read_calibration(file).name == "2 texts of own.txt"
    assert len(read_calibration(None).texts) >= 256
    with pytest.raises(InputError, match="cannot read"):
        read_calibration(tmp_path / "none.txt")
