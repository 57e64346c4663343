"""The bar chart of a results JSON: speed relative to sentence-transformers fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines import REFERENCE, SUBJECT
from report import speed_ratio

SUBJECT_COLOR = "#d1495b"
PEER_COLORS = ("#8d99ae", "#b8c0cc", "#1d6996", "#38a6a5", "#94c973", "#e0a458", "#6f4e7c", "#555555")


def draw_chart(results: dict[str, Any], output: Path) -> None:
    """Write a png with one panel a model, a group of bars a workload and a bar an engine."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    models = {name: model for name, model in results["models"].items() if _is_drawable(model)}
    if not models:
        return
    figure, panels = plt.subplots(len(models), 1, figsize=(12, 4.6 * len(models)), squeeze=False, layout="constrained")
    for panel, (name, model) in zip(panels[:, 0], models.items(), strict=True):
        _draw_model(panel, name, model)
    machine = results["machine"]
    figure.suptitle(f"Speed from strings to vectors, {machine['cpu']}, {machine['cores']} cores", fontsize=13)
    figure.savefig(output, dpi=130)
    plt.close(figure)


def _is_drawable(model: dict[str, Any]) -> bool:
    return "workloads" in model["engines"].get(REFERENCE, {})


def _draw_model(panel: Any, name: str, model: dict[str, Any]) -> None:
    rows = {key: row for key, row in model["engines"].items() if "error" not in row}
    workloads = list(model["workloads"])
    width = 0.86 / len(rows)
    peer_colors = iter(PEER_COLORS)
    for index, (key, row) in enumerate(rows.items()):
        heights = [speed_ratio(row, rows[REFERENCE], workload) for workload in workloads]
        places = [place + (index - (len(rows) - 1) / 2) * width for place in range(len(workloads))]
        color = SUBJECT_COLOR if key == SUBJECT else next(peer_colors)
        bars = panel.bar(places, heights, width * 0.94, label=row["label"], color=color)
        panel.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    panel.axhline(1.0, color="#333333", linewidth=0.8, linestyle="--")
    panel.set_xticks(range(len(workloads)), workloads)
    panel.set_ylabel("times sentence-transformers fp32")
    panel.set_title(f"{name}: {model['description']}", loc="left", fontsize=11)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.12)
    panel.legend(fontsize=8, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))
