"""Pass: products whose batches broadcast become products of as many on both sides."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.pattern import dimensions

MATRIX_AXES = 2


def expand_products(model: ir.Model) -> int:
    """Repeat the right side of a product for the batches of the left.

    ONNX Runtime's CUDA kernel hands the addresses of batches that broadcast over from the host, where a captured graph
    no longer finds them when it is replayed.

    Given:   %y = MatMul(%x, %z), %z of (1, num_heads, m, n) and %x of (batch_size, num_heads, k, m)
    Result:  %y = MatMul(%x, Expand(%z, [batch_size, num_heads, m, n]))
    """
    found = [node for node in model.graph if _broadcasts(node)]
    for node in found:
        left, right = node.inputs
        tape = Tape()
        batches = tape.op("Shape", [left], {"start": 0, "end": -MATRIX_AXES})
        matrix = tape.op("Shape", [right], {"start": -MATRIX_AXES})
        shape = tape.op("Concat", [batches, matrix], {"axis": 0})
        expanded = tape.op("Expand", [right, shape])
        assert right is not None
        expanded.type = right.type
        expanded.shape = ir.Shape([*(dimensions(left) or ())[:-2], *(dimensions(right) or ())[-2:]])
        model.graph.insert_before(node, tape.nodes)
        node.replace_input_with(1, expanded)
    return len(found)


def _broadcasts(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "MatMul"):
        return False
    left, right = (dimensions(value) for value in node.inputs)
    if left is None or right is None or len(right) <= MATRIX_AXES or len(left) != len(right):
        return False
    return left[:-MATRIX_AXES] != right[:-MATRIX_AXES] and 1 in right[:-MATRIX_AXES]
