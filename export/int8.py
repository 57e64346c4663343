"""int8: which tables and products are quantized and how, by fidelity first and speed second, on held-out texts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.export.build import lower_variant
from poolgraph.export.calibration import observe, split_held_out
from poolgraph.export.calibration_texts import EDGE_TEXTS, CalibrationTexts
from poolgraph.export.describe import build_manifest
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.export.recipes import GroupRecipes, measure_group
from poolgraph.export.resolve import ExportPlan
from poolgraph.export.tokenizer import save_tokenizer
from poolgraph.export.verify import build_probes, takes_pairs
from poolgraph.graphs.families import AnswerKind
from poolgraph.graphs.manifest import Graph, Manifest, Quantization, Tokenization, Variant
from poolgraph.graphs.pipeline import CPU_FP32, CPU_INT8, Target
from poolgraph.graphs.products import find_products
from poolgraph.graphs.quantize_embeddings import find_tables, quantize_embeddings
from poolgraph.graphs.quantize_products import Recipe, quantize_products
from poolgraph.graphs.storage import save_graphs
from poolgraph.runtime.activations import finish_logits
from poolgraph.runtime.compare import Comparison, Threshold, compare_answers
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.pair_tokenizer import encode_pairs
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.session import open_session, run_graph
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

Answers = list[NDArray[np.float32]]
Recipes = Mapping[str, Recipe]

BARS: Mapping[str, Threshold] = MappingProxyType(
    {
        "embedding": Threshold(min_cosine=0.985, mean_cosine=0.9965),
        "logits": Threshold(min_cosine=-1.0, max_difference=0.03),
    }
)
"""What held-out texts and the probes must reach by kind of answer, stricter than the gate."""

TABLE_BARS: Mapping[str, Threshold] = MappingProxyType(
    {
        "embedding": Threshold(min_cosine=0.997, mean_cosine=0.9993),
        "logits": Threshold(min_cosine=-1.0, max_difference=0.006),
    }
)
"""The same for tables in 8 bits alone: a fifth of what BARS allow. What tables and products lose adds up, and a product
left in float32 for a table's loss would cost more time than the table saves memory."""

LONGEST = 512
"""Longest calibration text in tokens."""

LONG_TEXTS = 3
"""Texts joined from all others, cut at LONGEST."""

TOKEN_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Shares of the products, those first that static scales change most, that get a scale a token."""
FLOAT_SHARES = (0.05, 0.125, 0.25, 0.5, 0.75, 0.9)
"""Shares of the products that stay float32 where scales a token do not suffice."""


@dataclass(frozen=True, slots=True)
class Int8Plan:
    """The recipes of a model and its tables in 8 bits, and what the manifest says of them."""

    recipes: Recipes
    tables: tuple[str, ...]
    record: Quantization

    def for_target(self, target: Target) -> tuple[Target, Quantization]:
        """Return a target that quantizes first, and its record; the portable one keeps activations in float32."""
        recipes, record = self.recipes, self.record
        if target.layout == "padded":
            recipes = {name: recipe.of_weights() for name, recipe in self.recipes.items()}
            record = Quantization(
                weights=len(recipes),
                smoothed=record.smoothed,
                float32=record.float32,
                tables=record.tables,
                float32_tables=record.float32_tables,
                calibration=record.calibration,
            )
        return _quantizing(target, self.tables, recipes), record


def _quantizing(target: Target, tables: tuple[str, ...], recipes: Recipes) -> Target:
    return replace(target, passes=(quantize_embeddings(tables), quantize_products(recipes), *target.passes))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Runs a graph on held-out texts and compares with float32's answers.

    Attributes:
        semantic: The traced graph of the uniform layout.
        kind: Of its answers.
        activation: Of its logits.
        tokenization: Of the manifest.
        texts: What it answers.
        expected: What it answers in float32, a list a family.
        tables: Those in 8 bits beside the products.
    """

    semantic: ir.Model
    kind: AnswerKind
    activation: str | None
    tokenization: Tokenization
    texts: Sequence[EncodedText]
    expected: list[Answers] = field(default_factory=list)
    tables: tuple[str, ...] = ()

    def feeds(self, texts: Sequence[EncodedText]) -> list[Mapping[str, NDArray[np.int64]]]:
        """Return the inputs of texts, each alone."""
        lowered = lower_variant(self.semantic, (), CPU_FP32, self.kind)
        runner = build_runner(lowered.variant, self.tokenization)
        graph = next(iter(lowered.variant.graphs.values()))
        return [runner.feed([text], graph) for text in texts]

    def answer(self, target: Target, recipes: Recipes) -> list[Answers]:
        """Answer the texts, each alone, by every graph that the recipes make: a list a family."""
        lowered = lower_variant(self.semantic, (), _quantizing(target, self.tables, recipes), self.kind)
        with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
            save_graphs(lowered.models, Path(folder), "weights.bin")
            return [self._run(Path(folder), lowered.variant, graph) for graph in lowered.variant.graphs.values()]

    def _run(self, folder: Path, variant: Variant, graph: Graph) -> Answers:
        path = folder / Path(graph.file).name
        session = open_session(path, variant, read_cpu_info().num_cores, provider=variant.providers[0])
        runner = build_runner(variant, self.tokenization)
        raw = [run_graph(session, graph, runner.feed([text], graph))[0] for text in self.texts]
        return raw if self.kind == "embedding" else [finish_logits(rows, self.activation) for rows in raw]

    def compare(self, recipes: Recipes) -> Comparison:
        """Return the worst comparison of both int8 graphs: quantized activations, and quantized weights alone."""
        of_weights = {name: recipe.of_weights() for name, recipe in recipes.items()}
        found = self.answer(CPU_INT8, recipes) + self.answer(CPU_FP32, of_weights)
        return self._worst(self.expected * 2, found, BARS[self.kind])

    def compare_tables(self) -> Comparison:
        """Return the worst comparison of the float32 graph whose tables alone are in 8 bits."""
        return self._worst(self.expected, self.answer(CPU_FP32, {}), TABLE_BARS[self.kind])

    def _worst(self, expected: list[Answers], found: list[Answers], bar: Threshold) -> Comparison:
        comparisons = [compare_answers(one, other, bar) for one, other in zip(expected, found, strict=True)]
        return min(comparisons, key=lambda it: (it.passed, it.mean_cosine))


def plan_int8(plan: ExportPlan, semantic: ir.Model, calibration: CalibrationTexts | None) -> Int8Plan:
    """Decide how a model's tables and products are quantized.

    Args:
        plan: What is exported.
        semantic: The traced graph of the uniform layout, left as it is.
        calibration: None for a checkpoint too large to run here: every product gets a scale a token, and every table 8
            bits, which by scales a row cost a model far less than its products do. The gate judges both, on the twin.
    """
    groups, tables = find_products(semantic), find_tables(semantic)
    if calibration is None:
        recipes = {group.name: Recipe(scheme="token") for group in groups}
        return Int8Plan(recipes, tables, Quantization(token=len(recipes), tables=tables, calibration="none"))
    encoded, edges, probes, manifest = _encode(plan, calibration.texts)
    observed, held_out = split_held_out(len(encoded))
    judge = Judge(
        semantic=semantic,
        kind=plan.head.kind,
        activation=plan.head.activation,
        tokenization=manifest.tokenization,
        texts=[*(encoded[index] for index in held_out), *edges, *probes],
    )
    with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
        feeds = judge.feeds([*(encoded[index] for index in observed), *edges])
        observations = observe(semantic, feeds, Path(folder))
    measured = {group.name: measure_group(group, observations[group.name]) for group in groups}
    judge = choose_tables(replace(judge, expected=judge.answer(CPU_FP32, {})), tables)
    chosen = choose_recipes(judge, measured)
    left = tuple(name for name in tables if name not in judge.tables)
    return Int8Plan(chosen.recipes, judge.tables, _describe(chosen, judge.tables, left, calibration.name))


def _encode(
    plan: ExportPlan, texts: Sequence[str]
) -> tuple[list[EncodedText], list[EncodedText], list[EncodedText], Manifest]:
    """Tokenize the texts, pairs of neighbours where pairs are what the model reads; EDGE_TEXTS and the probes apart."""
    manifest = build_manifest(plan, (), min_cosine=None)
    limit = min(LONGEST, plan.limits.max_model_len)
    prompt = manifest.prompts.get(manifest.default_prompt_name or "", "")
    with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
        save_tokenizer(plan.tokenizer, plan.backbone.folder, Path(folder), list(PROBE_SENTENCES))
        tokenizer = TextTokenizer(Path(folder), manifest)
        encoded = tokenizer.encode(texts, prompt=prompt, truncate_to=limit)
        if takes_pairs(manifest):
            pairs = list(zip(texts[::2], texts[1::2], strict=False))
            encoded += encode_pairs(tokenizer, pairs, truncate_to=limit)
        longest = [" ".join(texts[start::LONG_TEXTS]) for start in range(LONG_TEXTS)]
        edges = [text for edge in (*EDGE_TEXTS, *longest) for text in _encode_edge(tokenizer, edge, prompt, limit)]
        probes = build_probes(tokenizer, manifest)
    return encoded, edges, list(probes.encoded), manifest


def _encode_edge(tokenizer: TextTokenizer, text: str, prompt: str, limit: int) -> list[EncodedText]:
    """Return nothing for a text that has no token of this tokenizer."""
    try:
        return tokenizer.encode([text], prompt=prompt, truncate_to=limit)
    except InputError:
        return []


def _describe(
    chosen: Chosen, tables: tuple[str, ...], float32_tables: tuple[str, ...], calibration: str
) -> Quantization:
    schemes = [recipe.scheme for recipe in chosen.recipes.values()]
    return Quantization(
        static=schemes.count("static"),
        token=schemes.count("token"),
        smoothed=sum(recipe.smoothing is not None for recipe in chosen.recipes.values()),
        float32=chosen.float32,
        tables=tables,
        float32_tables=float32_tables,
        calibration=calibration,
        mean_cosine=chosen.found.mean_cosine,
        min_cosine=chosen.found.min_cosine,
    )


def choose_tables(judge: Judge, tables: tuple[str, ...]) -> Judge:
    """Return the judge with the tables in 8 bits if they keep the answers of held-out texts, else as it is."""
    if not tables:
        return judge
    quantized = replace(judge, tables=tables)
    return quantized if quantized.compare_tables().passed else judge


def choose_recipes(judge: Judge, measured: Mapping[str, GroupRecipes]) -> Chosen:
    """Take the fastest set of recipes whose answers of held-out texts are good enough, else the best one."""
    best: Chosen | None = None
    for recipes in _sets(measured):
        found = judge.compare(recipes)
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


def _sets(measured: Mapping[str, GroupRecipes]) -> Iterator[Recipes]:
    """Yield sets of recipes, the fastest first."""
    by_static = sorted(measured, key=lambda name: -measured[name].static.error)
    for share in TOKEN_SHARES:
        per_token = set(by_static[: round(share * len(by_static))])
        yield {name: (found.token if name in per_token else found.static).recipe for name, found in measured.items()}
    by_token = sorted(measured, key=lambda name: -measured[name].token.error)
    for share in FLOAT_SHARES:
        left = set(by_token[: min(math.ceil(share * len(by_token)), len(by_token) - 1)])
        yield {name: found.token.recipe for name, found in measured.items() if name not in left}
