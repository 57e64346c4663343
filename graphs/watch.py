"""Watching: a graph that also returns the sources of its products, for calibration."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.products import find_products


def watch_sources(model: ir.Model) -> dict[str, str]:
    """Make outputs of the sources of all product groups.

    Returns:
        The output's name by the group's name; groups of one source share it.
    """
    watched = {}
    for group in find_products(model):
        if not group.source.is_graph_output():
            model.graph.outputs.append(group.source)
        watched[group.name] = str(group.source.name)
    return watched
