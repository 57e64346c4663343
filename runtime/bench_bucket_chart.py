"""The picture of ``poolgraph plan``: lengths with the buckets' edges, and the padding that each plan computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from poolgraph.runtime.bench_chart import check_plot
from poolgraph.runtime.bucket_report import PlanReport, TextLengths
from poolgraph.runtime.buckets import Padding

_BINS: Final = 64
_MILLION: Final = 1_000_000


def draw_buckets(reports: Sequence[PlanReport], lengths: TextLengths, path: Path) -> None:
    """Write the picture, a row a layout.

    Raises:
        InputError: a suffix of no picture.
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_plot(path)
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(reports),
        2,
        figsize=(11.0, 3.6 * len(reports) + 0.4),
        squeeze=False,
        layout="constrained",
        width_ratios=(3, 2),
    )
    for report, (left, right) in zip(reports, panels, strict=True):
        _draw_lengths(left, report, lengths)
        _draw_tokens(right, report)
    figure.suptitle(f"{lengths.model}: {len(lengths.lengths)} texts, {sum(lengths.lengths)} tokens", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_lengths(panel: Any, report: PlanReport, lengths: TextLengths) -> None:
    panel.hist(lengths.lengths, bins=_BINS, range=(0, lengths.max_model_len), color="C0")
    edges = sorted({bucket.max_length for bucket in report.buckets})
    for edge in edges:
        panel.axvline(edge, color="C1", linewidth=0.8)
    panel.set_title(f"{report.layout}: {len(report.buckets)} buckets of {len(edges)} lengths", loc="left", fontsize=10)
    panel.set_xlabel("tokens of a text; lines: longest text of a bucket", fontsize=8)
    panel.set_ylabel("texts", fontsize=8)
    _finish(panel)


def _draw_tokens(panel: Any, report: PlanReport) -> None:
    rows: list[tuple[str, Padding]] = [
        ("single bucket,\neach text alone", report.single_alone),
        ("single bucket,\none call", report.single),
        ("planned,\neach text alone", report.alone),
        ("planned,\none call", report.together),
    ]
    names = [name for name, _ in rows]
    waste = [100 * padding.waste for _, padding in rows]
    panel.barh(names, [100 - share for share in waste], color="C0", label="tokens of texts")
    panel.barh(names, waste, left=[100 - share for share in waste], color="C3", label="padding")
    for place, (_, padding) in enumerate(rows):
        panel.text(101, place, f"{padding.waste:.1%} of {_shorten(padding)}", va="center", fontsize=8)
    panel.set_xlim(0, 100)
    panel.set_xlabel("percent of the tokens computed", fontsize=8)
    panel.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    _finish(panel)


def _shorten(padding: Padding) -> str:
    computed = padding.real_tokens + padding.padded_tokens
    return f"{computed / 1e6:.3g} M tokens" if computed >= _MILLION else f"{computed} tokens"


def _finish(panel: Any) -> None:
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
