"""Which engine runs when, and what their lines add up to: pure decisions, no process is started here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MEDIAN_KEYS = ("median_s", "texts_per_s", "tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process: an engine on a model in a round."""

    model: str
    round: int
    engine: str


def plan_runs(models: Sequence[str], engines: Sequence[str], rounds: int) -> list[Run]:
    """Take the engines in turn, round after round, so that a slow minute of the machine falls on all of them alike."""
    return [
        Run(model=model, round=number, engine=engine)
        for model in models
        for number in range(rounds)
        for engine in engines
    ]


def summarize_engine(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reduce an engine's lines, one a round, to medians; an engine that failed in any round is an error row."""
    errors = [line["error"] for line in lines if "error" in line]
    label = lines[0]["label"]
    if errors:
        return {"label": label, "error": errors[0]}
    names = lines[0]["workloads"]
    return {
        "label": label,
        "load_s": round(statistics.median(line["load_s"] for line in lines), 3),
        "peak_rss_mib": round(statistics.median(line["peak_rss_bytes"] for line in lines) / 2**20),
        "workloads": {name: _summarize_workload([line["workloads"][name] for line in lines]) for name in names},
    }


def _summarize_workload(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in MEDIAN_KEYS}
    return summary | {
        "rounds_s": [row["median_s"] for row in rows],
        "repeats": [row["repeats"] for row in rows],
        "batch_sizes": [row["batch_size"] for row in rows],
        "min_cosine": min(row["min_cosine"] for row in rows),
        "mean_cosine": statistics.fmean(row["mean_cosine"] for row in rows),
    }


def group_lines(lines: Iterable[dict[str, Any]], model: str, engines: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of one model by engine, in the order of ``engines``; engines without a line are left out."""
    grouped: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for line in lines:
        if line["model"] == model:
            grouped[line["engine"]].append(line)
    return {engine: rows for engine, rows in grouped.items() if rows}
