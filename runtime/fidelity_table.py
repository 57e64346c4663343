"""A comparison of precisions in words and as a table, for terminals and model cards."""

from __future__ import annotations

from poolgraph.graphs.manifest import Fidelity


def describe_fidelity(fidelity: Fidelity) -> str:
    """Say what was compared with what, and on which texts."""
    variants = " and ".join(dict.fromkeys(row.variant for row in fidelity.rows))
    queries = f"{fidelity.num_queries} queries and " if fidelity.num_queries else ""
    cut = f", {fidelity.num_truncated} inputs cut" if fidelity.num_truncated else ""
    return f"{variants} against {fidelity.reference}: {queries}{fidelity.num_documents} {fidelity.corpus}{cut}"


def tabulate_fidelity(fidelity: Fidelity) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, one a measure; a measure of agreement leaves the reference's column empty."""
    variants = list(dict.fromkeys(row.variant for row in fidelity.rows))
    cells = {(row.measure, row.variant): row for row in fidelity.rows}
    measures = list(dict.fromkeys(row.measure for row in fidelity.rows))
    rows = [
        [
            measure,
            _format(measure, cells[measure, variants[0]].reference_value),
            *(_format(measure, cells[measure, variant].value) for variant in variants),
        ]
        for measure in measures
    ]
    return ["measure", "reference", *variants], rows


def _format(measure: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if measure == "largest difference" else f"{value:.5f}"
