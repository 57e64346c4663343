"""Recipes: for each group of products the scales that change its results least, measured on observed rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from poolgraph.export.calibration import Observation
from poolgraph.graphs.products import ProductGroup
from poolgraph.graphs.quantize_products import LARGEST, MIDDLE, TINIEST, Recipe, Scheme, join_weights, quantize_weights

Floats = NDArray[np.float32]

STRENGTH = 0.5
"""How much of the activations' spread moves to the weights (alpha of SmoothQuant, arXiv 2211.10438, equation 4)."""
SHRINKS = (1.0, 0.8, 0.6, 0.45, 0.3)
"""Shares of the observed range that static scales cover; what lies beyond is cut."""
WORTH = 0.9
"""Smoothing costs a pass over the activations: it must leave less than this share of the error."""
STEPS = 255
"""Between the least and the largest of 8 bits."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A recipe and what it costs: the error's share of the product's norm."""

    recipe: Recipe
    error: float


@dataclass(frozen=True, slots=True)
class GroupRecipes:
    """The best recipe of each scheme for one group."""

    static: Measured
    token: Measured
    range: Measured


def measure_group(group: ProductGroup, observed: Observation) -> GroupRecipes:
    """Search each scheme's recipe for a group; its weights are read here and let go.

    All have the smoothing that suits ranges best, or none, and so the same weights in 8 bits: variants of one artifact
    share them.
    """
    weight = join_weights([product.weight.const_value for product in group.products], None)
    expected = observed.rows @ weight

    def measure(scheme: Scheme, smoothing: Floats | None) -> Measured:
        rows, quantized = _smoothed(observed.rows, weight, smoothing)
        return _measure(rows, quantized, expected, Recipe(scheme=scheme, smoothing=smoothing))

    plain, smoothed = (measure("range", smoothing) for smoothing in (None, _smooth(observed, weight)))
    ranged = smoothed if smoothed.error < WORTH * plain.error else plain
    smoothing = ranged.recipe.smoothing
    static = _measure_static(observed, weight, expected, smoothing)
    return GroupRecipes(static=static, token=measure("token", smoothing), range=ranged)


def _measure_static(observed: Observation, weight: Floats, expected: Floats, smoothing: Floats | None) -> Measured:
    """Return the static scale that costs least under one smoothing."""
    rows, quantized = _smoothed(observed.rows, weight, smoothing)
    low, high = _range(observed, smoothing)
    scales = [_static_scale(low * shrink, high * shrink) for shrink in SHRINKS]
    ranged = [Recipe(scheme="static", scale=s, zero_point=z, smoothing=smoothing) for s, z in scales]
    return min((_measure(rows, quantized, expected, recipe) for recipe in ranged), key=_error)


def _error(measured: Measured) -> float:
    return measured.error


def _smooth(observed: Observation, weight: Floats) -> Floats:
    activations = np.maximum(np.maximum(np.abs(observed.low), np.abs(observed.high)), 1e-5)
    weights = np.maximum(np.abs(weight).max(axis=1), 1e-5)
    smoothing = activations**STRENGTH / weights ** (1.0 - STRENGTH)
    return np.asarray(smoothing / np.exp(np.log(smoothing).mean()), dtype=np.float32)


def _smoothed(rows: Floats, weight: Floats, smoothing: Floats | None) -> tuple[Floats, Floats]:
    """Return the rows divided, and the weight multiplied and rounded to 8 bits, in float32 again."""
    if smoothing is not None:
        rows, weight = rows * (1.0 / smoothing).astype(np.float32), weight * smoothing[:, None]
    integers, scales = quantize_weights(weight)
    return rows, integers * scales


def _range(observed: Observation, smoothing: Floats | None) -> tuple[float, float]:
    divisor = 1.0 if smoothing is None else smoothing
    return min(0.0, float((observed.low / divisor).min())), max(0.0, float((observed.high / divisor).max()))


def _static_scale(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of 8 bits that reach from ``low`` to ``high``, zero among them."""
    scale = max((high - low) / STEPS, TINIEST)
    return float(np.float32(scale)), int(np.clip(np.rint(-low / scale), 0, STEPS))


def quantize_rows(rows: Floats, recipe: Recipe) -> Floats:
    """Round rows as a recipe's graph does, in float32 again."""
    if recipe.scheme == "static":
        integers = np.clip(np.rint(rows / np.float32(recipe.scale)) + recipe.zero_point, 0, STEPS) - recipe.zero_point
        return np.asarray(integers * np.float32(recipe.scale), dtype=np.float32)
    if recipe.scheme == "range":
        low, high = np.minimum(rows.min(axis=1, keepdims=True), 0), np.maximum(rows.max(axis=1, keepdims=True), 0)
        scales = np.maximum((high - low) / np.float32(STEPS), TINIEST)
        zero_points = np.rint(-low / scales)
        integers = np.clip(np.rint(rows / scales) + zero_points, 0, STEPS) - zero_points
    else:
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True) * np.float32(1.0 / LARGEST), TINIEST)
        integers = np.clip(np.rint(rows / scales), -MIDDLE, LARGEST)
    return np.asarray(integers * scales, dtype=np.float32)


def _measure(rows: Floats, weight: Floats, expected: Floats, recipe: Recipe) -> Measured:
    difference = expected - quantize_rows(rows, recipe) @ weight
    correction, of_weights = difference.mean(axis=0), expected.mean(axis=0) - rows.mean(axis=0) @ weight
    error = float(np.linalg.norm(difference - correction) / max(float(np.linalg.norm(expected)), TINIEST))
    return Measured(replace(recipe, correction=correction, weight_correction=of_weights), error)
