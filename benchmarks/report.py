"""Markdown tables from a results JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engines import REFERENCE, SUBJECT
from workloads import MIXED

Rows = dict[str, dict[str, Any]]


def render_report(results: dict[str, Any]) -> str:
    """Render the whole page: the machine, then for each model its speeds, poolgraph's ratios and the failures."""
    lines = [f"# Benchmark: {results['name']}", "", *_describe(results), ""]
    for name, model in results["models"].items():
        lines += [f"## {name}: {model['description']}", "", *_render_model(model)]
    return "\n".join(lines).rstrip() + "\n"


def speed_ratio(row: dict[str, Any], against: dict[str, Any], workload: str) -> float:
    """Return how many times as fast as ``against`` a row is on ``workload``."""
    return float(row["workloads"][workload]["tokens_per_s"] / against["workloads"][workload]["tokens_per_s"])


def mixed_share(row: dict[str, Any]) -> float | None:
    """Return the mixed corpus' tokens per second over those of the best uniform shape; None where one is missing."""
    speeds = {name: measured["tokens_per_s"] for name, measured in row["workloads"].items()}
    uniform = [speed for name, speed in speeds.items() if name != MIXED]
    return speeds[MIXED] / max(uniform) if MIXED in speeds and uniform else None


def _describe(results: dict[str, Any]) -> Iterator[str]:
    machine, settings = results["machine"], results["settings"]
    yield f"{results['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
    yield f"{', '.join(machine['cpu_features'])}; {machine['system']}."
    yield ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + "."
    yield ""
    yield (
        f"Tokens per second from strings to vectors, median of {settings['rounds']} interleaved rounds, one process an "
        "engine and round; in brackets the speed relative to sentence-transformers fp32. Cosines are to its vectors, "
        "the lowest over all texts."
    )


def _render_model(model: dict[str, Any]) -> Iterator[str]:
    good: Rows = {key: row for key, row in model["engines"].items() if "error" not in row}
    names = list(model["workloads"])
    shape = [
        f"{name}: {size['num_texts']} texts, {size['num_tokens']} tokens" for name, size in model["workloads"].items()
    ]
    yield f"Workloads: {'; '.join(shape)}."
    yield ""
    header = ["engine", *names, "mixed / best uniform", "min cosine", "load s", "peak MiB"]
    body = [
        _speed_cells(row, good.get(REFERENCE), names) if key in good else _error_cells(row, len(header))
        for key, row in model["engines"].items()
    ]
    yield from _render_table(header, body)
    subject = good.get(SUBJECT)
    if subject:
        yield f"{subject['label']}, times as fast as:"
        yield ""
        peers = [row for key, row in good.items() if key != SUBJECT]
        ratios = [[row["label"], *(f"{speed_ratio(subject, row, name):.2f}" for name in names)] for row in peers]
        yield from _render_table(["engine", *names], ratios)


def _speed_cells(row: dict[str, Any], reference: dict[str, Any] | None, names: Sequence[str]) -> list[str]:
    cells = [row["label"]]
    for name in names:
        speed = f"{row['workloads'][name]['tokens_per_s']:,.0f}"
        cells.append(f"{speed} ({speed_ratio(row, reference, name):.2f})" if reference else speed)
    share = mixed_share(row)
    lowest = min(row["workloads"][name]["min_cosine"] for name in names)
    shown_share = "" if share is None else f"{share:.2f}"
    return [*cells, shown_share, f"{lowest:.5f}", f"{row['load_s']:.1f}", f"{row['peak_rss_mib']:,}"]


def _error_cells(row: dict[str, Any], width: int) -> list[str]:
    message = " ".join(row["error"].split()).replace("|", "/")
    return [row["label"], f"failed: {message}", *[""] * (width - 2)]


def _render_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---|" + "---:|" * (len(header) - 1)
    for cells in body:
        yield "| " + " | ".join(cells) + " |"
    yield ""
