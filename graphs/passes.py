"""What a pass is: a function that edits a model in place and returns its number of rewrites; and how passes run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

Pass = Callable[[ir.Model], int]
"""Run twice, a pass returns 0 the second time."""


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did to one model."""

    name: str
    rewrites: int
    nodes_before: int
    nodes_after: int


def run_passes(model: ir.Model, passes: Sequence[Pass]) -> tuple[PassReport, ...]:
    """Run passes in order and report each."""
    reports = []
    for graph_pass in passes:
        before = len(model.graph)
        rewrites = graph_pass(model)
        reports.append(PassReport(graph_pass.__name__, rewrites, before, len(model.graph)))
    return tuple(reports)
