"""What the rounds of the online benchmark add up to, and the page made of it: nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL_KEYS = ("requests_per_s", "p50_ms", "p99_ms", "max_ms", "client_cpu_ms", "server_cpu_ms")
OFFLINE_KEYS = ("texts_per_s", "call_p50_ms", "cpu_ms")
LEAST_COSINE = 0.97
"""A vector further than this from the offline one is another text's: int8 and torch differ by less."""


def check_vectors(found: NDArray[np.float32], expected: NDArray[np.float32], *, exact: bool) -> float:
    """Compare answers (num_texts, size) with the offline ones and return the least cosine.

    Raises:
        ValueError: the bits differ where they must not, or an answer is another text's.
    """
    if exact and not np.array_equal(found, expected):
        raise ValueError(f"{int((found != expected).any(axis=1).sum())} of {len(found)} answers have other bits")
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    least = float(cosines.min())
    if not least >= LEAST_COSINE:
        raise ValueError(f"an answer has cosine {least:.4f} with the offline one: it is another text's")
    return least


def median_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, float]:
    """Return the medians over rounds."""
    return {key: statistics.median(row[key] for row in rows) for key in keys}


def summarize_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduce rounds to medians: of the offline run, and of each server at each number of clients."""
    servers: dict[str, Any] = {}
    for name, levels in rounds[0]["servers"].items():
        rows = {clients: [one["servers"][name][clients] for one in rounds] for clients in levels}
        servers[name] = {clients: median_of(found, LEVEL_KEYS) for clients, found in rows.items()}
        for clients, found in rows.items():
            servers[name][clients]["requests"] = sum(row["requests"] for row in found)
            servers[name][clients]["min_cosine"] = min(row["min_cosine"] for row in found)
            servers[name][clients]["compared"] = sum(row["compared"] for row in found)
    return {"offline": median_of([one["offline"] for one in rounds], OFFLINE_KEYS), "servers": servers}


def judge_goals(summary: Mapping[str, Any], subject: str) -> dict[str, float]:
    """Return the figures that the goals are about."""
    levels, offline = summary["servers"][subject], summary["offline"]
    most = levels[max(levels, key=int)]
    goals = {
        "share_of_offline_rate": most["requests_per_s"] / offline["texts_per_s"],
        "p99_over_p50": most["p99_ms"] / most["p50_ms"],
    }
    if "1" in levels:
        goals["lone_client_above_call_ms"] = levels["1"]["p50_ms"] - offline["call_p50_ms"]
    others = [rows for name, rows in summary["servers"].items() if name != subject]
    if others:
        best = {clients: max(rows[clients]["requests_per_s"] for rows in others) for clients in levels}
        goals |= {f"times_best_peer_at_{key}": levels[key]["requests_per_s"] / best[key] for key in levels}
    return goals


def render_online(results: Mapping[str, Any]) -> str:
    """Render the page."""
    return "\n".join(_render_lines(results)).rstrip() + "\n"


def _render_lines(results: Mapping[str, Any]) -> Iterator[str]:
    machine, settings, summary = results["machine"], results["settings"], results["summary"]
    offline, goals = summary["offline"], results["goals"]
    yield "# Benchmark: online"
    yield ""
    yield f"{results['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
    yield f"{', '.join(machine['cpu_features'])}; {machine['system']}."
    yield ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + "."
    if results["peer_versions"]:
        listed = ", ".join(f"{name} {version}" for name, version in results["peer_versions"].items())
        yield f"infinity's environment: {listed}."
    yield ""
    yield (
        f"{results['model']}, variant `{results['variant']}`. Each client sends one text of 16 to 64 tokens, waits for "
        f"its vector as JSON floats and sends the next; no text is sent twice. Medians of {settings['rounds']} "
        f"interleaved rounds of {settings['seconds']:g} s; the load comes from a second process on the same cores."
    )
    yield ""
    yield "| server | clients | requests/s | p50 ms | p99 ms | CPU ms a request | of the load | least cosine |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, levels in summary["servers"].items():
        for clients, row in levels.items():
            yield (
                f"| {results['labels'][name]} | {clients} | {row['requests_per_s']:,.0f} | {row['p50_ms']:.2f} | "
                f"{row['p99_ms']:.2f} | {row['server_cpu_ms']:.2f} | {row['client_cpu_ms']:.3f} | "
                f"{row['min_cosine']:.5f} |"
            )
    yield ""
    yield (
        f"Offline, `PoolingModel.embed` with {settings['offline_texts']:,} of the same texts a call: "
        f"{offline['texts_per_s']:,.0f} texts/s, {offline['cpu_ms']:.2f} ms of CPU a text. One text a call: "
        f"{offline['call_p50_ms']:.2f} ms. Least cosine is that of the compared answers with the offline ones; "
        "poolgraph's have the same bits."
    )
    yield ""
    levels = summary["servers"]["poolgraph"]
    most = levels[max(levels, key=int)]
    share = offline["cpu_ms"] / (most["server_cpu_ms"] + most["client_cpu_ms"])
    yield (
        f"Load average before: {machine['load_average_before']}. On a machine that does other things, rates of "
        f"different moments do not compare; by processor time, the load's included, the server has {share:.2f} of the "
        "offline rate."
    )
    yield ""
    yield "| goal | wanted | measured |"
    yield "|---|---:|---:|"
    for key, figure in goals.items():
        words, wanted = _GOALS[key.rpartition("_at_")[0] or key]
        clients = key.rpartition("_at_")[2] if "_at_" in key else ""
        yield f"| {words}{clients} | {wanted} | {figure:.2f} |"


_GOALS = {
    "share_of_offline_rate": ("share of the offline rate, most clients", ">= 0.85"),
    "p99_over_p50": ("p99 over p50, most clients", "< 4"),
    "lone_client_above_call_ms": ("one client's median above the direct call, ms", "< 2"),
    "times_best_peer": ("times the best peer's requests/s, clients: ", ">= 3"),
}
