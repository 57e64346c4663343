"""Variants of one artifact against its float32 or its checkpoint: what the user would notice, text by text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ProviderError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Fidelity, FidelityRow, Manifest, Variant
from poolgraph.runtime.compare import cosine_rows
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.fidelity import (
    Floats,
    label_agreement,
    largest_difference,
    ndcg_at,
    recall_at,
    spearman,
    top_overlap,
)
from poolgraph.runtime.fidelity_corpus import Corpus, shipped_corpus
from poolgraph.runtime.fidelity_kinds import Findings, Questions, Raw, choose_kind
from poolgraph.runtime.loading import working_machine
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.providers import PORTABLE, Wish, choose_variant
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.verify import import_export

TOP: Final = 10

OriginalModel: TypeAlias = Callable[[str, Sequence[EncodedText]], tuple[str, Raw]]
"""A graph family and its inputs to the name of what answered, and the raw answers."""

_Compare: TypeAlias = Callable[[Findings, Findings], float]
_Judge: TypeAlias = Callable[[Floats, NDArray[np.bool_]], float]

AGREEMENT: Final[Mapping[str, _Compare]] = MappingProxyType(
    {
        "mean cosine": lambda one, other: float(cosine_rows(_rows(one), _rows(other)).mean()),
        "lowest cosine": lambda one, other: float(cosine_rows(_rows(one), _rows(other)).min()),
        "top-10 overlap": lambda one, other: top_overlap(_scores(one), _scores(other), TOP),
        "same best document": lambda one, other: top_overlap(_scores(one), _scores(other), 1),
        "Spearman": lambda one, other: spearman(_values(one), _values(other)),
        "same label": lambda one, other: label_agreement(_rows(one), _rows(other)),
        "largest difference": lambda one, other: largest_difference(_values(one), _values(other)),
    }
)
"""Measures of two sides."""

QUALITY: Final[Mapping[str, _Judge]] = MappingProxyType(
    {
        "recall@10": lambda scores, relevant: recall_at(scores, relevant, TOP),
        "nDCG@10": lambda scores, relevant: ndcg_at(scores, relevant, TOP),
    }
)
"""Measures of one side, where it is known which documents answer the queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityPlan:
    """Which variants are compared with which one; ``note`` says why there are none.

    Attributes:
        variants: Names of those that are compared.
        reference: Name of the variant that they are compared with; None for the original model.
        note: Why nothing can be compared, else empty.
    """

    variants: tuple[str, ...] = ()
    reference: str | None = None
    note: str = ""


def report_fidelity(
    path: str | Path, *, corpus: Corpus | None = None, checkpoint: str | Path | None = None
) -> tuple[Fidelity | None, str]:
    """Compare an artifact's precisions, or all of them with the checkpoint.

    Args:
        path: The artifact's directory.
        corpus: The texts; None takes those that ship.
        checkpoint: The checkpoint that the artifact was made from, run by torch here.

    Returns:
        The comparison; or None, and why there is none where one was asked for or a lower precision is there.
    """
    directory = Path(path)
    manifest = open_artifact(directory)
    plan = plan_fidelity(manifest, with_original=checkpoint is not None)
    if not plan.variants:
        is_expected = corpus is not None or any(variant.precision != "fp32" for variant in manifest.variants)
        return None, plan.note if is_expected else ""
    original = None if checkpoint is None else partial(import_export().ask_checkpoint, manifest, checkpoint)
    return compare_precisions(directory, manifest, plan, corpus or shipped_corpus(), original), ""


def plan_fidelity(manifest: Manifest, *, with_original: bool = False) -> FidelityPlan:
    """Decide what is compared on this machine.

    Args:
        manifest: The artifact's.
        with_original: Compare with the original model: then a float32 variant is compared too.
    """
    running = [variant for variant in manifest.variants if _runs_here(manifest, variant)]
    floats = sorted((v for v in running if v.precision == "fp32"), key=lambda v: v.target == PORTABLE)
    reduced = [variant for variant in running if variant.precision != "fp32"]
    if with_original:
        return FidelityPlan(variants=tuple(variant.name for variant in (*floats[:1], *reduced)))
    if reduced and floats:
        return FidelityPlan(variants=tuple(variant.name for variant in reduced), reference=floats[0].name)
    return FidelityPlan(note=_explain_none(manifest, reduced))


def _runs_here(manifest: Manifest, variant: Variant) -> bool:
    wish = Wish(variant=variant.name)
    try:
        choose_variant(manifest, wish, working_machine(read_cpu_info()))
    except ProviderError:
        return False
    return True


def _explain_none(manifest: Manifest, reduced: Sequence[Variant]) -> str:
    precisions = list(dict.fromkeys(variant.precision for variant in manifest.variants))
    others = [variant.name for variant in manifest.variants if variant.precision != "fp32"]
    if not others:
        return (
            "every variant is float32, so there are no two precisions to compare; "
            "--checkpoint PATH compares with the original model"
        )
    if reduced:
        return (
            f"the artifact has no float32 variant that runs here to compare {_join(reduced)} with: give --checkpoint "
            f"PATH, or export it with --precision {','.join(dict.fromkeys(('fp32', *precisions)))}"
        )
    return f"{' and '.join(others)} cannot run on this machine, so nothing is compared with float32"


def _join(variants: Sequence[Variant]) -> str:
    return " and ".join(variant.name for variant in variants)


def compare_precisions(
    directory: Path, manifest: Manifest, plan: FidelityPlan, corpus: Corpus, original: OriginalModel | None = None
) -> Fidelity:
    """Ask each variant about a corpus and compare its answers with the reference's.

    Args:
        directory: The artifact.
        manifest: Its manifest.
        plan: What is compared; one that compares something.
        corpus: The texts.
        original: Answers in the place of a variant where the plan names none.

    Raises:
        InputError: a text that the model does not take, as one without any token.
    """
    kind = choose_kind(manifest)
    names = [*plan.variants] if plan.reference is None else [plan.reference, *plan.variants]
    found: dict[str, Findings] = {}
    questions: Questions | None = None
    for name in names:
        with PoolingModel.load(directory, variant=name, allow_unverified=True) as model:
            questions = questions or kind.encode(model, corpus)
            found[name] = kind.finish(manifest, questions, _run(model, kind.family, questions.encoded))
    assert questions is not None
    reference = plan.reference
    if reference is None:
        assert original is not None
        reference, raw = original(kind.family, questions.encoded)
        found[reference] = kind.finish(manifest, questions, raw)
    return Fidelity(
        reference=reference,
        corpus=corpus.name,
        num_queries=questions.num_queries,
        num_documents=len(corpus.documents) + (0 if questions.num_queries else len(corpus.queries)),
        num_truncated=sum(text.num_truncated_tokens > 0 for text in questions.encoded),
        rows=tuple(
            row
            for name in plan.variants
            for row in _compare(name, found[reference], found[name], questions.relevant, kind.measures)
        ),
    )


def _run(model: PoolingModel, family: str, encoded: Sequence[EncodedText]) -> Raw:
    return list(model.run_sequence(encoded)) if family == "sequence" else model.run_token(encoded)


def _compare(
    variant: str, reference: Findings, found: Findings, relevant: NDArray[np.bool_] | None, measures: Sequence[str]
) -> list[FidelityRow]:
    rows = []
    for measure in measures:
        if measure in AGREEMENT:
            value = AGREEMENT[measure](reference, found)
            rows.append(FidelityRow(variant=variant, measure=measure, value=_finite(value)))
        elif relevant is not None:
            values = [_finite(QUALITY[measure](_scores(side), relevant)) for side in (found, reference)]
            rows.append(FidelityRow(variant=variant, measure=measure, value=values[0], reference_value=values[1]))
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(findings: Findings) -> NDArray[np.float64]:
    assert findings.rows is not None
    return findings.rows.astype(np.float64)


def _scores(findings: Findings) -> Floats:
    assert findings.scores is not None
    return findings.scores


def _values(findings: Findings) -> Floats:
    return _rows(findings) if findings.scores is None else findings.scores
