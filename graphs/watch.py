"""Watching: a graph that also returns what calibration asks of it: sources of products, or ranges of values."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from poolgraph.graphs.convert_float import row_values
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


def watch_ranges(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Return instead of the model's answers the largest absolute number of values of the backbone's rows.

    Args:
        model: A lowered graph, in float32.
        names: The values that are of interest, where they are rows.

    Returns:
        The value's name by the output's name; outputs are scalars.
    """
    graph, watched = model.graph, {}
    rows = [value for value in row_values(model) if str(value.name) in names]
    graph.outputs.clear()
    for index, value in enumerate(rows):
        absolute = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", [absolute.outputs[0]], {"keepdims": 0})
        output = largest.outputs[0]
        output.name, output.shape, output.type = f"range_{index}", ir.Shape(()), ir.TensorType(ir.DataType.FLOAT)
        graph.extend([absolute, largest])
        graph.outputs.append(output)
        watched[f"range_{index}"] = str(value.name)
    return watched
