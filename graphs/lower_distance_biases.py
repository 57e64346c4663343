"""Pass: semantic biases by distance to standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.pattern import DISTANCE_BIAS, SEMANTIC_DOMAIN, add_constant, add_integers, replace_node


def lower_distance_biases(model: ir.Model) -> int:
    """Expand the biases by distance that something reads.

    Given:   %bias = poolgraph::DistanceBias(%by_distance)
    Result:  %columns = Range(sequence_length - 1, 2 * sequence_length - 1);  %rows = Range(0, sequence_length)
             %bias = Unsqueeze(Gather(%by_distance, %columns of each key - %rows of each query, axis=1), 0)
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (SEMANTIC_DOMAIN, DISTANCE_BIAS)]
    used = [node for node in nodes if node.outputs[0].uses() or node.outputs[0].is_graph_output()]
    for node in used:
        _expand(model.graph, node)
    return len(used)


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    by_distance, tape = node.inputs[0], Tape()
    assert by_distance is not None
    zero, one, two = (add_constant(graph, f"index_{number}", np.array(number)) for number in range(3))
    count = tape.op("Squeeze", [tape.op("Shape", [by_distance], {"start": 1, "end": 2})])
    last = tape.op("Div", [count, two])
    # Sizes are computed on the host, and a sum of one with what a GPU computes would be a copy; of a Range it is none.
    columns, rows = tape.op("Range", [last, count, one]), tape.op("Range", [zero, tape.op("Add", [last, one]), one])
    axes = [add_integers(graph, [axis]) for axis in (0, 1)]
    index = tape.op("Sub", [tape.op("Unsqueeze", [columns, axes[0]]), tape.op("Unsqueeze", [rows, axes[1]])])
    bias = tape.op("Unsqueeze", [tape.op("Gather", [by_distance, index], {"axis": 1}), axes[0]])
    replace_node(graph, node, tape.nodes, bias)
