"""What ``poolgraph plan`` says: the buckets proposed for some texts, and the padding they waste beside a single one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.bound_inputs import BOUND_LAYOUTS
from poolgraph.runtime.bucket_assignment import assign_texts
from poolgraph.runtime.bucket_planner import BucketBudget, count_lengths, plan_buckets, single_bucket
from poolgraph.runtime.buckets import RUN_COST_TOKENS, Bucket, BucketBatch, Padding, count_padding
from poolgraph.runtime.file_sources import FileSource
from poolgraph.runtime.pipeline import FIRST_BOUND_WINDOW, WINDOW_TEXTS, plan_windows
from poolgraph.runtime.provider_options import BOUND_DEVICES
from poolgraph.runtime.tokenizer import TextTokenizer

PADDED_RATE: Final = 4 / 3
"""Tokens that the padded variant computes while the packed one computes one, padding included: BERT-base in fp16 on an
H200, texts of one length (benchmarks/results/gpu_h200.md: 1.34 at 128 tokens, 1.31 at 512)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketUse:
    """One bucket and what it is used for, all texts in one call.

    Attributes:
        bucket: The shape.
        runs: Batches in it.
        texts: Texts in them.
        real_tokens: Tokens of those.
        padded_tokens: Tokens computed beside them.
    """

    bucket: Bucket
    runs: int
    texts: int
    real_tokens: int
    padded_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """The buckets proposed for one layout.

    Attributes:
        layout: ``padded`` or ``packed``.
        uses: The buckets, largest first.
        single_bucket: The one bucket of those who have no plan.
        together: Tokens computed where all texts are one call.
        alone: The same where each text is a call of its own.
        single: The same where all texts are one call and the single bucket is all there is.
        single_alone: And where each text is a call of its own.
    """

    layout: str
    uses: tuple[BucketUse, ...]
    single_bucket: Bucket
    together: Padding
    alone: Padding
    single: Padding
    single_alone: Padding

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets alone."""
        return tuple(use.bucket for use in self.uses)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLengths:
    """The token counts of some texts.

    Attributes:
        model: The model whose tokenizer counted.
        max_model_len: Its limit.
        lengths: Tokens of each text, special tokens included; longer ones count as the limit.
        num_cut: How many were longer.
    """

    model: str
    max_model_len: int
    lengths: tuple[int, ...]
    num_cut: int


def read_lengths(directory: Path, manifest: Manifest, source: FileSource) -> TextLengths:
    """Count the tokens of a file's texts with an artifact's tokenizer, and its default prompt before each.

    Raises:
        InputError: a file that cannot be read or holds no text.
    """
    tokenizer = TextTokenizer(directory, manifest)
    name = manifest.default_prompt_name
    prompt = "" if name is None else manifest.prompts[name]
    limit = manifest.limits.max_model_len
    counted = [
        length for window in _windows(source) for length in tokenizer.count([prompt + str(text) for text in window])
    ]
    return TextLengths(
        model=manifest.source.model,
        max_model_len=limit,
        lengths=tuple(min(length, limit) for length in counted),
        num_cut=sum(length > limit for length in counted),
    )


def choose_layouts(manifest: Manifest, layout: str | None) -> tuple[str, ...]:
    """Return the layouts to plan: the one asked for, else those of the artifact's variants that run in buckets."""
    if layout is not None:
        return (layout,)
    own = _bound_variants(manifest)
    return tuple(name for name in BOUND_LAYOUTS if name in own) or ("padded",)


def _bound_variants(manifest: Manifest) -> dict[str, str]:
    """Return the layouts of the variants that run in buckets, each with the name of the first variant that has it."""
    bound = [variant for variant in manifest.variants if set(variant.providers) & set(BOUND_DEVICES)]
    return {variant.layout: variant.name for variant in reversed(bound)}


def plan_report(lengths: Sequence[int], budget: BucketBudget, layout: str) -> PlanReport:
    """Plan buckets for texts of these lengths and say what they waste.

    Raises:
        InputError: no text.
    """
    if not lengths:
        raise InputError("there are no texts to plan buckets for")
    buckets = plan_buckets(budget, layout, count_lengths(lengths, budget.max_model_len))
    single = single_bucket(budget, layout)
    batches = _assign_windows(lengths, buckets)
    return PlanReport(
        layout=layout,
        uses=tuple(_sum_up(bucket, batches) for bucket in buckets),
        single_bucket=single,
        together=count_padding(batches),
        alone=_pad_alone(lengths, buckets),
        single=count_padding(_assign_windows(lengths, [single])),
        single_alone=_pad_alone(lengths, [single]),
    )


def format_plan(report: PlanReport, lengths: TextLengths) -> str:
    """Write a report for people: the buckets as a table, and the padding in words."""
    single = report.single_bucket
    rows = [f"{'bucket':<32} {'runs':>7} {'texts':>9} {'tokens':>12} {'padding':>8}"]
    rows += [_format_use(use) for use in report.uses]
    cut = f"; {lengths.num_cut} are longer than the model's limit and count as that" if lengths.num_cut else ""
    return "\n".join(
        [
            f"{lengths.model}: {len(lengths.lengths)} texts, {sum(lengths.lengths)} tokens{cut}",
            f"{len(report.uses)} {report.layout} buckets:",
            *(f"  {row}" for row in rows),
            f"padding where all texts are one call: {report.together.waste:.1%}; in the single bucket {single}: "
            f"{report.single.waste:.1%}",
            f"padding where each text comes alone: {report.alone.waste:.1%}; in the single bucket: "
            f"{report.single_alone.waste:.1%}",
        ]
    )


def advise_layout(reports: Sequence[PlanReport], manifest: Manifest) -> str | None:
    """Say which of the two layouts is likely faster for these texts, all in one call; None where there is no choice."""
    costs = {report.layout: report.together for report in reports}
    if set(costs) != {"padded", "packed"}:
        return None
    padded, packed = (_cost(costs[layout]) for layout in ("padded", "packed"))
    share = padded / PADDED_RATE / packed
    rates = f"by the rates of BERT-base on an H200, padded batches take {share:.2f} of the time of packed ones"
    names = _bound_variants(manifest)
    choice = f"load(variant={names['padded']!r}) for them" if share < 1 else "packed is the default"
    return f"{rates}: {choice}"


def _cost(padding: Padding) -> int:
    return padding.real_tokens + padding.padded_tokens + padding.runs * RUN_COST_TOKENS


def _format_use(use: BucketUse) -> str:
    computed = use.real_tokens + use.padded_tokens
    waste = f"{use.padded_tokens / computed:.1%}" if computed else "-"
    return f"{use.bucket!s:<32} {use.runs:>7} {use.texts:>9} {use.real_tokens:>12} {waste:>8}"


def _windows(source: FileSource) -> Iterator[list[str]]:
    window: list[str] = []
    for (text,) in source.read():
        window.append(str(text))
        if len(window) == WINDOW_TEXTS:
            yield window
            window = []
    if window:
        yield window


def _assign_windows(lengths: Sequence[int], buckets: Sequence[Bucket]) -> list[BucketBatch]:
    """Assign texts as a call does, window by window."""
    windows = plan_windows(len(lengths), FIRST_BOUND_WINDOW, WINDOW_TEXTS)
    return [batch for start, stop in windows for batch in assign_texts(lengths[start:stop], buckets)]


def _pad_alone(lengths: Sequence[int], buckets: Sequence[Bucket]) -> Padding:
    computed = {length: assign_texts([length], buckets)[0].bucket.size for length in set(lengths)}
    real = sum(lengths)
    return Padding(
        real_tokens=real, padded_tokens=sum(computed[length] for length in lengths) - real, runs=len(lengths)
    )


def _sum_up(bucket: Bucket, batches: Sequence[BucketBatch]) -> BucketUse:
    own = [batch for batch in batches if batch.bucket == bucket]
    padding = count_padding(own)
    return BucketUse(
        bucket=bucket,
        runs=len(own),
        texts=sum(len(batch.indices) for batch in own),
        real_tokens=padding.real_tokens,
        padded_tokens=padding.padded_tokens,
    )
