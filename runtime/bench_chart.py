"""The plot of a benchmark: speed against fidelity, a panel a workload and a point an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from poolgraph.errors import InputError
from poolgraph.runtime.bench_results import BenchResult, EngineResult, Fidelity

SUFFIXES: Final = (".png", ".svg", ".pdf")

LEAST: Final = 1e-8
"""Where answers that are equal are drawn, on a logarithmic axis that has no zero."""

_COLUMNS: Final = 3
_LABELS: Final = {"cosine": "1 - lowest cosine", "difference": "largest difference"}
_MARKERS: Final = "osD^vPX*<>"


def check_plot(path: Path) -> None:
    """Check, before anything is measured, that a plot can be drawn into a file.

    Raises:
        InputError: a suffix of no picture.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a plot is written as {', '.join(SUFFIXES)}", parameter="plot")
    import matplotlib as mpl

    mpl.use("Agg")


def distance(fidelity: Fidelity, measure: str) -> float:
    """Return how far answers are from the reference's, at least ``LEAST``."""
    return max(LEAST, 1.0 - fidelity.min_cosine if measure == "cosine" else fidelity.max_difference)


def draw_plot(result: BenchResult, path: Path) -> None:
    """Write the plot; an engine that failed is left out."""
    check_plot(path)
    import matplotlib.pyplot as plt

    engines = [engine for engine in result.engines if engine.error is None]
    rows = -(-len(result.workloads) // _COLUMNS)
    columns = min(_COLUMNS, len(result.workloads))
    figure, panels = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.4 * rows + 0.8), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(result.workloads) :]:
        panel.set_axis_off()
    for panel, shape in zip(panels.flat, result.workloads, strict=False):
        _draw_panel(panel, shape.name, engines, result.measure)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    cpu, cores = result.machine["cpu"], result.machine["cores"]
    figure.suptitle(f"{result.model}: speed against fidelity to {result.reference}, {cpu}, {cores} cores", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(panel: Any, workload: str, engines: list[EngineResult], measure: str) -> None:
    for index, engine in enumerate(engines):
        row = engine.workloads[workload]
        panel.plot(
            distance(row.fidelity, measure),
            row.tokens_per_s,
            _MARKERS[index % len(_MARKERS)],
            markersize=8,
            color=f"C{index % 10}",
            label=engine.label,
        )
    panel.set_title(workload, loc="left", fontsize=10)
    panel.set_xscale("log")
    panel.set_xlim(LEAST / 2, 2.0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel(_LABELS[measure], fontsize=8)
    panel.set_ylabel("tokens per second", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
