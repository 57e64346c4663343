"""int8: which products are quantized and how, by fidelity first and speed second, judged on held-out texts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from poolgraph.export.calibration import observe, split_held_out
from poolgraph.export.calibration_inputs import encode_calibration
from poolgraph.export.calibration_texts import CalibrationTexts
from poolgraph.export.int8_judge import Judge, Recipes, of_weights, quantizing
from poolgraph.export.recipes import GroupRecipes, Measured, measure_group
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.manifest import NATIVE_OPERATORS, Quantization
from poolgraph.graphs.note_routers import router_weights
from poolgraph.graphs.pipeline import CPU_FP32, CPU_INT8, NATIVE_INT8, Target
from poolgraph.graphs.products import ProductGroup, find_products
from poolgraph.graphs.quantize_embeddings import find_tables
from poolgraph.graphs.quantize_products import Recipe, Scheme
from poolgraph.runtime.compare import Comparison

Measurements = Mapping[str, GroupRecipes]

TOKEN_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Shares of the products, those first that static scales change most, that get a scale a token."""
FLOAT_SHARES = (0.05, 0.125, 0.25, 0.5, 0.75, 0.9)
"""Shares of the products that stay float32 where scales a token do not suffice."""


@dataclass(frozen=True, slots=True)
class QuantizedProducts:
    """The recipes of a model for some targets, and what the manifest says of them."""

    recipes: Recipes
    record: Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Plan:
    """What of a model is quantized and how.

    Attributes:
        tables: Tables of embeddings in 8 bits.
        contrib: Products on ONNX Runtime's operators, of which those with static scales are the fastest.
        native: Products on this package's own, which are as fast with ranges of tokens; None where no target has them.
    """

    tables: tuple[str, ...]
    contrib: QuantizedProducts
    native: QuantizedProducts | None = None

    def for_target(self, target: Target) -> tuple[Target, Quantization]:
        """Return a target that quantizes first, and its record; the portable one keeps activations in float32."""
        if target.operators is not None:
            assert self.native is not None
            return quantizing(target, self.native.recipes, self.tables), self.native.record
        recipes, record = self.contrib.recipes, self.contrib.record
        if target.layout == "padded":
            recipes = of_weights(recipes)
            record = msgspec.structs.replace(
                record, weights=len(recipes), static=0, token=0, mean_cosine=None, min_cosine=None
            )
        return quantizing(target, recipes, self.tables), record


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The recipes of a model.

    Attributes:
        recipes: By the name of a group of products.
        float32: Groups that have none.
        found: Held-out texts' answers against float32's.
    """

    recipes: Recipes
    float32: tuple[str, ...]
    found: Comparison


def plan_int8(plan: ExportPlan, semantic: ir.Model, calibration: CalibrationTexts | None) -> Int8Plan:
    """Decide how a model's products are quantized.

    Args:
        plan: What is exported.
        semantic: The traced graph of the uniform layout, left as it is.
        calibration: None for a checkpoint too large to run here: every product gets a scale a token, and every table 8
            bits, which by scales a row cost a model far less than its products do. The gate judges both, on the twin.
    """
    routers, tables = router_weights(semantic), find_tables(semantic)
    groups = [group for group in find_products(semantic) if not _is_of_router(group, routers)]
    is_native = any(target.operators == NATIVE_OPERATORS for target in plan.targets)
    if calibration is None:
        contrib, native = (_uncalibrated(groups, tables, routers, scheme) for scheme in ("token", "range"))
        return Int8Plan(tables=tables, contrib=contrib, native=native if is_native else None)
    inputs = encode_calibration(plan, calibration.texts)
    encoded, edges = inputs.encoded, inputs.edges
    observed, held_out = split_held_out(len(encoded))
    judge = Judge(
        semantic=semantic,
        kind=plan.head.kind,
        activation=plan.head.activation,
        tokenization=inputs.manifest.tokenization,
        texts=[*(encoded[index] for index in held_out), *edges, *inputs.probes],
        has_routers=bool(routers),
    )
    with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
        feeds = judge.feeds([*(encoded[index] for index in observed), *edges])
        observations = observe(semantic, feeds, Path(folder))
    measured = {group.name: measure_group(group, observations[group.name]) for group in groups}
    judge = choose_tables(replace(judge, expected=judge.answer(CPU_FP32, {})), tables)
    base = Quantization(
        routers=routers,
        tables=judge.tables,
        float32_tables=tuple(name for name in tables if name not in judge.tables),
        calibration=calibration.name,
    )

    def choose(target: Target, sets: Iterator[Recipes]) -> QuantizedProducts:
        chosen = choose_recipes(judge, measured, target, sets)
        return QuantizedProducts(chosen.recipes, _describe(chosen, base))

    return Int8Plan(
        tables=judge.tables,
        contrib=choose(CPU_INT8, contrib_sets(measured)),
        native=choose(NATIVE_INT8, native_sets(measured)) if is_native else None,
    )


def _is_of_router(group: ProductGroup, routers: tuple[str, ...]) -> bool:
    """Whether a group chooses experts: it takes no time, and what it rounds sends tokens elsewhere."""
    return any(product.weight.name in routers for product in group.products)


def _uncalibrated(
    groups: Sequence[ProductGroup], tables: tuple[str, ...], routers: tuple[str, ...], scheme: Scheme
) -> QuantizedProducts:
    recipes = {group.name: Recipe(scheme=scheme) for group in groups}
    record = Quantization(token=len(recipes), tables=tables, routers=routers, calibration="none")
    return QuantizedProducts(recipes, record)


def _describe(chosen: Chosen, base: Quantization) -> Quantization:
    schemes = [recipe.scheme for recipe in chosen.recipes.values()]
    return msgspec.structs.replace(
        base,
        static=schemes.count("static"),
        token=schemes.count("token") + schemes.count("range"),
        smoothed=sum(recipe.smoothing is not None for recipe in chosen.recipes.values()),
        float32=chosen.float32,
        mean_cosine=chosen.found.mean_cosine,
        min_cosine=chosen.found.min_cosine,
    )


def choose_tables(judge: Judge, tables: tuple[str, ...]) -> Judge:
    """Return the judge with the tables in 8 bits if they keep the answers of held-out texts, else as it is."""
    if not tables:
        return judge
    quantized = replace(judge, tables=tables)
    return quantized if quantized.compare_tables().passed else judge


def choose_recipes(judge: Judge, measured: Measurements, target: Target, sets: Iterator[Recipes]) -> Chosen:
    """Take the first set of recipes whose answers of held-out texts are good enough, else the best one."""
    best: Chosen | None = None
    for recipes in sets:
        found = judge.compare(recipes, target)
        chosen = Chosen(
            recipes=recipes,
            float32=tuple(name for name in measured if name not in recipes),
            found=found,
        )
        if found.passed:
            return chosen
        if best is None or found.mean_cosine > best.found.mean_cosine:
            best = chosen
    assert best is not None
    return best


def contrib_sets(measured: Measurements) -> Iterator[Recipes]:
    """Yield sets of recipes for ONNX Runtime's operators, the fastest first."""
    by_static = sorted(measured, key=lambda name: -measured[name].static.error)
    for share in TOKEN_SHARES:
        per_token = set(by_static[: round(share * len(by_static))])
        yield {name: (found.token if name in per_token else found.static).recipe for name, found in measured.items()}
    yield from _partly_float({name: found.token for name, found in measured.items()})


def native_sets(measured: Measurements) -> Iterator[Recipes]:
    """Yield sets of recipes for this package's operators: ranges of tokens cost nothing there, and are closer."""
    ranged = {name: found.range for name, found in measured.items()}
    yield {name: found.recipe for name, found in ranged.items()}
    yield from _partly_float(ranged)


def _partly_float(measured: Mapping[str, Measured]) -> Iterator[Recipes]:
    by_error = sorted(measured, key=lambda name: -measured[name].error)
    for share in FLOAT_SHARES:
        left = set(by_error[: min(math.ceil(share * len(by_error)), len(by_error) - 1)])
        yield {name: found.recipe for name, found in measured.items() if name not in left}
