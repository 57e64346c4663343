"""The GPU benchmark's results as tables, and what they say of the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_engines import ENGINES
from gpu_models import MODELS
from gpu_workloads import MIXED, TEXT_IDS, TEXTS

MIN_COSINE = 0.9995
SHORT, MIDDLE, LONG = "32x16", "64x128", "32x512"
_COLUMNS = "| engine | texts/s | tokens/s | of the product's rate | beside the best torch | memory | cosine distance |"
_RULE = "|---|---|---|---|---|---|---|"

GOALS: Sequence[tuple[str, str, float]] = (
    ("bert-base", MIDDLE, 1.3),
    ("bert-base", LONG, 1.3),
    ("bert-base", MIXED, 1.3),
    ("minilm", SHORT, 2.0),
    ("qwen3-0.6b", MIDDLE, 1.0),
    ("qwen3-0.6b", LONG, 1.0),
)
"""How many times the best torch engine's rate poolgraph is to reach."""
LEAST_SHARE, LEAST_FROM_TEXTS = 0.45, 0.8
"""Of the measured rate of products, BERT-base at 512; and of the rate without tokenizing, the same from strings."""

Results = Mapping[str, Any]


def write_report(results: Results) -> str:
    """Return the report in Markdown."""
    lines = ["# GPU benchmark", "", *_describe(results), ""]
    for goal in check_goals(results):
        lines.append(f"* {goal}")
    for model, found in results["models"].items():
        lines += ["", f"## {MODELS[model].description}, random weights", ""]
        lines += [f"* {note}" for note in found["notes"]]
        for workload in _workloads(found):
            lines += ["", f"### {workload}", "", _COLUMNS, _RULE, *_rows(found, workload)]
    return "\n".join(lines) + "\n"


def check_goals(results: Results) -> list[str]:
    """Return a line a goal that could be measured: what was to be reached and what was."""
    lines = []
    for model, workload, wanted in GOALS:
        ours, theirs = (_best(results, model, workload, kind) for kind in ("poolgraph", "torch"))
        if ours and theirs:
            lines.append(_goal(f"{model} {workload}: times the best torch", ours / theirs, wanted))
    shares = _values(results, "bert-base", LONG, "poolgraph", "share")
    if shares:
        lines.append(_goal("bert-base 32x512: share of the product's rate", max(shares), LEAST_SHARE))
    texts, ids = (_best(results, "bert-base", name, "poolgraph") for name in (TEXTS, TEXT_IDS))
    if texts and ids:
        lines.append(_goal("bert-base from strings: share of the rate from ids", texts / ids, LEAST_FROM_TEXTS))
    distances = [
        cell["max_distance"]
        for found in results["models"].values()
        for engine, cells in found["engines"].items()
        for cell in cells.values()
        if engine.startswith("poolgraph") and "max_distance" in cell
    ]
    if distances:
        lines.append(_goal("poolgraph: least cosine to fp32", 1 - max(distances), MIN_COSINE))
    return lines


def _goal(what: str, found: float, wanted: float) -> str:
    return f"{what}: {found:.4g}, wanted {wanted:g}: {'reached' if found >= wanted else 'MISSED'}"


def _best(results: Results, model: str, workload: str, kind: str) -> float | None:
    rates = _values(results, model, workload, kind, "tokens_per_s")
    return max(rates) if rates else None


def _values(results: Results, model: str, workload: str, kind: str, key: str) -> list[float]:
    engines = results["models"].get(model, {"engines": {}})["engines"]
    cells = [cells.get(workload, {}) for name, cells in engines.items() if name.startswith(kind)]
    return [cell[key] for cell in cells if cell.get(key) is not None]


def _describe(results: Results) -> list[str]:
    machine, rate = results["machine"], results["rate"]
    lines = [f"* {machine.get('gpu', 'no GPU')} ({machine.get('gpu_memory_gib', '-')} GiB), {machine['cpu']}"]
    lines += ["* " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())]
    if rate is not None:
        lines += [f"* A product of {rate['size']}^3 in {rate['dtype']}: {rate['flops_per_s'] / 1e12:.3g} TFLOP/s"]
    lines += [f"* {note}" for note in results["notes"]]
    return [*lines, f"* {results['elapsed_s']:.0f} s"]


def _workloads(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for cells in found["engines"].values() for name in cells))


def _rows(found: Mapping[str, Any], workload: str) -> list[str]:
    torch = [
        cells[workload]["tokens_per_s"]
        for name, cells in found["engines"].items()
        if name.startswith("torch") and "tokens_per_s" in cells.get(workload, {})
    ]
    rows = []
    for name, cells in found["engines"].items():
        cell = cells.get(workload)
        if cell is None:
            continue
        label = ENGINES[name].label
        if "tokens_per_s" not in cell:
            rows.append(f"| {label} | {cell.get('error', 'not measured')} | | | | | {_distance(cell)} |")
            continue
        beside = f"{cell['tokens_per_s'] / max(torch):.2f}" if torch else "-"
        share = "-" if cell.get("share") is None else f"{cell['share']:.1%}"
        memory = found["memory"].get(name)
        rows.append(
            f"| {label} | {cell['texts_per_s']:,.0f} | {cell['tokens_per_s']:,.0f} | {share} | {beside} | "
            f"{'-' if memory is None else f'{memory / 2**20:,.0f} MiB'} | {_distance(cell)} |"
        )
    return rows


def _distance(cell: Mapping[str, Any]) -> str:
    distance = cell.get("max_distance")
    if distance is None:
        return "-"
    return f"{distance:.1e}" + ("" if 1 - distance >= MIN_COSINE else " (too far)")
