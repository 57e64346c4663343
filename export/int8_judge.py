"""What quantizing changes: a graph's answers of held-out texts against those in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from poolgraph.export.build import lower_together
from poolgraph.graphs.families import AnswerKind
from poolgraph.graphs.manifest import Tokenization, Variant
from poolgraph.graphs.pipeline import CPU_FP32, CPU_INT8, Target
from poolgraph.graphs.quantize_embeddings import quantize_embeddings
from poolgraph.graphs.quantize_products import Recipe, quantize_products
from poolgraph.graphs.storage import save_graphs
from poolgraph.runtime.activations import finish_logits
from poolgraph.runtime.compare import Comparison, Threshold, allow_other_experts, compare_answers
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.session import mapped_errors, open_session
from poolgraph.runtime.tokenizer import EncodedText

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


def quantizing(target: Target, recipes: Recipes, tables: tuple[str, ...]) -> Target:
    """Return the target with the passes that quantize in front of its own."""
    products = quantize_products(recipes, native=target.operators is not None)
    return replace(target, passes=(quantize_embeddings(tables), products, *target.passes))


def of_weights(recipes: Recipes) -> Recipes:
    """Return the recipes with the same weights that leave activations in float32."""
    return {name: recipe.of_weights() for name, recipe in recipes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Runs a graph on held-out texts and compares with float32's answers.

    Attributes:
        semantic: The traced graph of the uniform layout.
        kind: Of its answers.
        activation: Of its logits.
        tokenization: Of the manifest.
        texts: What it answers.
        has_routers: Whether it chooses experts.
        expected: What it answers in float32.
        tables: Those in 8 bits beside the products.
    """

    semantic: ir.Model
    kind: AnswerKind
    activation: str | None
    tokenization: Tokenization
    texts: Sequence[EncodedText]
    has_routers: bool = False
    expected: Mapping[str, Answers] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    def feeds(self, texts: Sequence[EncodedText]) -> list[Mapping[str, NDArray[np.int64]]]:
        """Return the inputs of texts, each alone."""
        variant = lower_together(self.semantic, CPU_FP32).variant
        runner = build_runner(variant, self.tokenization)
        graph = next(iter(variant.graphs.values()))
        return [runner.feed([text], graph) for text in texts]

    def answer(self, target: Target, recipes: Recipes) -> dict[str, Answers]:
        """Answer the texts, each alone, by the graph that the recipes make: those of each family, of the same runs."""
        lowered = lower_together(self.semantic, quantizing(target, recipes, self.tables))
        with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
            save_graphs(lowered.models, Path(folder), "weights.bin")
            (file,) = lowered.models
            return self._run(Path(folder) / file, lowered.variant)

    def _run(self, path: Path, variant: Variant) -> dict[str, Answers]:
        session = open_session(path, variant, read_cpu_info().num_cores, provider=variant.providers[0])
        runner, graphs = build_runner(variant, self.tokenization), variant.graphs
        outputs = [graph.raw_output for graph in graphs.values()]
        feeds = [runner.feed([text], next(iter(graphs.values()))) for text in self.texts]
        with mapped_errors(f"running {path.name}"):
            runs = [session.run(outputs, feed) for feed in feeds]
        return {family: [self._finish(run[index][0]) for run in runs] for index, family in enumerate(graphs)}

    def _finish(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows if self.kind == "embedding" else finish_logits(rows, self.activation)

    def compare(self, recipes: Recipes, target: Target) -> Comparison:
        """Return the worst comparison of a target's graphs, for the cpu one also of the portable one's weights."""
        found = self._worst(self.answer(target, recipes), BARS[self.kind])
        if found.passed and target is CPU_INT8:
            portable = self._worst(self.answer(CPU_FP32, of_weights(recipes)), BARS[self.kind])
            found = min(found, portable, key=_quality)
        return found

    def compare_tables(self) -> Comparison:
        """Return the worst comparison of the float32 graph whose tables alone are in 8 bits."""
        return self._worst(self.answer(CPU_FP32, {}), TABLE_BARS[self.kind])

    def _worst(self, found: Mapping[str, Answers], bar: Threshold) -> Comparison:
        of_tokens = allow_other_experts(bar) if self.has_routers and self.kind == "embedding" else bar
        compared = (
            compare_answers(self.expected[family], answers, of_tokens if family == "token" else bar)
            for family, answers in found.items()
        )
        return min(compared, key=_quality)


def _quality(comparison: Comparison) -> tuple[bool, float]:
    return comparison.passed, comparison.mean_cosine
