"""Pass: sums over the rows of packed texts to this package's own operator."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.native import NATIVE_DOMAIN, TEXT_SUM
from poolgraph.graphs.pattern import TOKENS_AXIS, dimensions, is_initializer, replace_node


def lower_text_sums(model: ir.Model) -> int:
    """Lower the products of a membership matrix with the rows of packed texts.

    A product adds up blocks of tokens, and where a block begins depends on the texts in front. The operator adds up a
    text's own rows in their order.

    Given:   %pooled = MatMul(%members, %rows)
    Result:  %pooled = poolgraph.cpu::TextSum(%members, %rows)
    """
    sums = [node for node in model.graph if _is_text_sum(node)]
    for node in sums:
        tape = Tape()
        result = tape.op(TEXT_SUM, list(node.inputs), domain=NATIVE_DOMAIN)
        model.graph.opset_imports[NATIVE_DOMAIN] = 1
        replace_node(model.graph, node, tape.nodes, result)
    return len(sums)


def _is_text_sum(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "MatMul") or is_initializer(node.inputs[0]):
        return False
    rows = dimensions(node.inputs[1]) or ()
    return len(rows) == 2 and rows[0] == TOKENS_AXIS
