"""Verification at export: the artifact as the runtime runs it, against the reference, before it gets its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from poolgraph.export.probes import build_probe_texts, choose_lengths
from poolgraph.export.reference import ReferenceAnswers
from poolgraph.graphs.manifest import CheckRow, Graph, Manifest, Variant
from poolgraph.runtime.compare import THRESHOLDS, Threshold, compare_answers
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.session import open_session, run_graph
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from transformers import PreTrainedTokenizerBase

Answers = list[NDArray[np.float32]]

MIXED_BATCH = 6
"""Texts of a mixed-length batch: enough for long padding, small enough for little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Texts, their tokens as the artifact's tokenizer gives them (cut to the limit), and the prompt before them."""

    texts: tuple[str, ...]
    prompt: str
    encoded: tuple[EncodedText, ...]


def build_probes(tokenizer: TextTokenizer, manifest: Manifest) -> Probes:
    """Build the probes of an artifact, a text beyond the limit among them."""
    limit = manifest.limits.max_model_len
    prompt = manifest.prompts.get(manifest.default_prompt_name or "", "")
    texts = build_probe_texts(tokenizer.count, choose_lengths(limit))
    texts.append(" ".join(["overlong"] * (limit + 5)))
    encoded = tokenizer.encode(texts, prompt=prompt, truncate_to=limit)
    return Probes(texts=tuple(texts), prompt=prompt, encoded=tuple(encoded))


def check_tokenizer(probes: Probes, reference: PreTrainedTokenizerBase, limit: int) -> CheckRow:
    """Compare token ids with the reference's tokenizer, exactly."""
    expected = reference(
        [probes.prompt + text for text in probes.texts], truncation=True, max_length=limit, padding=False
    )["input_ids"]
    equal = sum(list(own.input_ids) == ids for own, ids in zip(probes.encoded, expected, strict=True))
    share = equal / len(expected)
    return CheckRow(
        variant="tokenizer",
        family="ids",
        check="equal ids",
        num_texts=len(expected),
        min_cosine=share,
        max_difference=1.0 - share,
        required_cosine=1.0,
        allowed_difference=0.0,
        passed=equal == len(expected),
    )


def verify_variant(
    directory: Path, variant: Variant, probes: Probes, reference: ReferenceAnswers, min_cosine: float | None
) -> list[CheckRow]:
    """Compare one variant's graphs with the reference, texts alone and in batches.

    Args:
        directory: The artifact, complete but for its report.
        variant: Which variant.
        probes: The texts.
        reference: Their raw answers.
        min_cosine: Overrides the threshold of the variant's precision.
    """
    threshold = THRESHOLDS[variant.precision]
    if min_cosine is not None:
        threshold = replace(threshold, min_cosine=min_cosine, max_difference=float("inf"))
    rows: list[CheckRow] = []
    with PoolingModel.load(directory, variant=variant.name, allow_unverified=True) as model:
        for family in variant.graphs:
            expected = reference.sequence if family == "sequence" else reference.token
            assert expected is not None
            rows += _verify_family(model, family, probes.encoded, expected, threshold)
    return rows


def _verify_family(
    model: PoolingModel, family: str, texts: Sequence[EncodedText], expected: Answers, threshold: Threshold
) -> list[CheckRow]:
    alone = [answer for text in texts for answer in _run(model, family, [text])]
    checks: dict[str, Answers] = {"alone": alone}
    if model.variant.layout == "padded":
        for side in ("right", "left"):
            checks[f"padded {side}"] = _run_mixed(model, family, texts, side)
    else:
        checks["in batches"] = _run(model, family, [*texts, *texts])[: len(texts)]
    rows = [_compare(model.variant, family, name, expected, answers, threshold) for name, answers in checks.items()]
    if model.variant.layout == "uniform":
        exact = Threshold(min_cosine=-1.0, max_difference=0.0)
        rows.append(_compare(model.variant, family, "same bits in batches", alone, checks["in batches"], exact))
    return rows


def _run(model: PoolingModel, family: str, texts: Sequence[EncodedText]) -> Answers:
    return list(model.run_sequence(texts)) if family == "sequence" else model.run_token(texts)


def _run_mixed(model: PoolingModel, family: str, texts: Sequence[EncodedText], side: str) -> Answers:
    """Run batches of very different lengths, padded on ``side``, in an order that mixes them."""
    graph: Graph = model.variant.graphs[family]
    runner = build_runner(model.variant, msgspec.structs.replace(model.manifest.tokenization, padding_side=side))
    session = open_session(model.path / graph.file, model.variant, read_cpu_info().num_cores, provider=model.provider)
    by_length = sorted(range(len(texts)), key=lambda index: texts[index].num_tokens)
    stride = -(-len(texts) // MIXED_BATCH)
    answers: dict[int, NDArray[np.float32]] = {}
    for start in range(stride):
        batch = by_length[start::stride]
        results = run_graph(session, graph, runner.feed([texts[index] for index in batch], graph))
        for index, result in zip(batch, results, strict=True):
            answers[index] = result if family == "sequence" else runner.token_rows(result, texts[index].num_tokens)
    return [answers[index] for index in range(len(texts))]


def _compare(
    variant: Variant, family: str, check: str, expected: Answers, answers: Answers, threshold: Threshold
) -> CheckRow:
    result = compare_answers(expected, answers, threshold)
    return CheckRow(
        variant=variant.name,
        family=family,
        check=check,
        num_texts=result.num_texts,
        min_cosine=result.min_cosine,
        max_difference=result.max_difference,
        required_cosine=threshold.min_cosine,
        allowed_difference=threshold.max_difference,
        passed=result.passed,
    )
