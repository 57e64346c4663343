"""What a pass is: a function that edits a model in place and returns its number of rewrites; and how passes run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from poolgraph.graphs.manifest import Rewrites

Pass = Callable[[ir.Model], int]
"""Run twice, a pass returns 0 the second time."""


def run_passes(model: ir.Model, passes: Sequence[Pass]) -> tuple[Rewrites, ...]:
    """Run passes in order and report each."""
    return tuple(Rewrites(name=graph_pass.__name__, rewrites=graph_pass(model)) for graph_pass in passes)
