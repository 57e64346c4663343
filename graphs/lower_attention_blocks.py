"""Attention within a window over packed texts: blocks of queries, each against its own keys and its neighbours'."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.attention_node import AttentionNode
from poolgraph.graphs.lower_attention import text_of_tokens
from poolgraph.graphs.pattern import CONTRIB_DOMAIN, add_constant, add_integers, dimensions, replace_node

LEAST_BLOCK: Final = 128
"""Queries of a block at least: what fills a tile of the attention kernels."""

UNSEEN: Final = -30000.0
"""Added to the score of a key that a query does not see: within float16, and its exponential is 0."""

NO_TEXT_KEY, NO_TEXT_QUERY = -1.0, -2.0
"""Text numbers of what is added to fill blocks; no token sees them."""


def lower_packed_window(graph: ir.Graph, attention: AttentionNode) -> None:
    """Lower attention within a window over texts packed in one row.

    A window reaches no further than the neighbouring block, so 3 blocks of keys are all that a block of queries sees,
    whatever the length of the texts; a bias hides those beyond the window or of other texts. ONNX Runtime has no
    operator with a window on both sides.

    Given:   %y = poolgraph::Attention(%q, %k, %v, , , %cu_seqlens) {left_window, right_window}
    Result:  %y = rows(com.microsoft::MultiHeadAttention(blocks(%q), neighbours(%k), neighbours(%v), , , %bias))
    """
    tape, blocks = Tape(), _Blocks(graph, attention)
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    query = blocks.of_queries(tape, attention.query)
    key, value = (blocks.of_keys(tape, rows) for rows in (attention.key, attention.value))
    attributes = {"num_heads": attention.num_heads, "scale": attention.scale}
    inputs = [query, key, value, None, None, blocks.bias(tape, attention)]
    rows = tape.op("MultiHeadAttention", inputs, attributes, domain=CONTRIB_DOMAIN)
    width = int((dimensions(attention.query) or (0,))[-1])
    joined = tape.op("Reshape", [rows, blocks.constant([1, -1, width])])
    bounds = [blocks.constant([0]), blocks.length(tape), blocks.constant([1])]
    result = tape.op("Slice", [joined, *bounds])
    replace_node(graph, attention.node, tape.nodes, result)


class _Blocks:
    """Rows (1, num_tokens, size) cut into blocks."""

    def __init__(self, graph: ir.Graph, attention: AttentionNode) -> None:
        self.graph = graph
        reach = max(attention.left_window, attention.right_window)
        self.size = max(LEAST_BLOCK, 1 << (reach - 1).bit_length())
        self.tokens = next(value for value in graph.inputs if value.name == "input_ids")

    def constant(self, numbers: list[int]) -> ir.Value:
        return add_integers(self.graph, numbers)

    def length(self, tape: Tape) -> ir.Value:
        """Return the number of tokens, (1,)."""
        return tape.op("Shape", [self.tokens], {"start": 0, "end": 1})

    def _missing(self, tape: Tape) -> ir.Value:
        """Return how many tokens the last block lacks, (1,)."""
        negated = tape.op("Neg", [self.length(tape)])
        return tape.op("Mod", [negated, self.constant([self.size])])

    def _filled(self, tape: Tape, rows: ir.Value, margin: int, filling: float, *, is_rows: bool) -> ir.Value:
        """Fill up the axis of tokens, behind one of size 1 where there is a row a token, and add ``margin`` around."""
        around = [self.constant([0])] if is_rows else []
        missing = tape.op("Add", [self._missing(tape), self.constant([margin])])
        pads = tape.op("Concat", [*around, self.constant([margin]), *around, *around, missing, *around], {"axis": 0})
        return tape.op("Pad", [rows, pads, self._number(filling)])

    def of_queries(self, tape: Tape, rows: ir.Value) -> ir.Value:
        """Return (num_blocks, size of a block, hidden_size)."""
        width = int((dimensions(rows) or (0,))[-1])
        filled = self._filled(tape, rows, 0, 0.0, is_rows=True)
        return tape.op("Reshape", [filled, self.constant([-1, self.size, width])])

    def of_keys(self, tape: Tape, rows: ir.Value) -> ir.Value:
        """Return each block between its neighbours, (num_blocks, 3 * size of a block, hidden_size)."""
        width = int((dimensions(rows) or (0,))[-1])
        filled = self._filled(tape, rows, self.size, 0.0, is_rows=True)
        return self._neighbours(tape, tape.op("Reshape", [filled, self.constant([-1, self.size, width])]))

    def _neighbours(self, tape: Tape, blocks: ir.Value) -> ir.Value:
        far = np.iinfo(np.int64).max
        cuts = ((0, -2), (1, -1), (2, far))
        parts = [tape.op("Slice", [blocks, *(self.constant([bound]) for bound in (*cut, 0))]) for cut in cuts]
        return tape.op("Concat", parts, {"axis": 1})

    def bias(self, tape: Tape, attention: AttentionNode) -> ir.Value:
        """Return 0 for keys that a query sees, (num_blocks, 1, size of a block, 3 * size of a block)."""
        texts = self._pair(tape, text_of_tokens(self.graph, tape, attention), NO_TEXT_QUERY, NO_TEXT_KEY)
        seen = tape.op("Equal", list(texts))
        queries, keys = self._pair(tape, self._index(tape), 0.0, 0.0)
        distance = tape.op("Sub", [keys, queries])
        for op_type, bound in (("GreaterOrEqual", -attention.left_window), ("LessOrEqual", attention.right_window)):
            seen = tape.op("And", [seen, tape.op(op_type, [distance, self._number(float(bound))])])
        window = tape.op("Where", [seen, self._number(0.0), self._number(UNSEEN)])
        return tape.op("Unsqueeze", [window, self.constant([1])])

    def _index(self, tape: Tape) -> ir.Value:
        """Return the index of each token, (num_tokens,)."""
        bounds = [add_constant(self.graph, f"index_{number}", np.array(number, dtype=np.int64)) for number in (0, 1)]
        return tape.op("Range", [bounds[0], tape.op("Squeeze", [self.length(tape)]), bounds[1]])

    def _number(self, number: float) -> ir.Value:
        name = f"number_{number:g}".replace("-", "m")
        return add_constant(self.graph, name, np.array(number, dtype=np.float32))

    def _pair(self, tape: Tape, numbers: ir.Value, query: float, key: float) -> tuple[ir.Value, ir.Value]:
        """Return one number a token, of queries as a column and of keys as a row of each block.

        As floats, exact below 16 million: CUDA's Pad takes no integers.
        """
        floats = tape.op("Cast", [numbers], {"to": ir.DataType.FLOAT})
        column = self._filled(tape, floats, 0, query, is_rows=False)
        rows = self._filled(tape, floats, self.size, key, is_rows=False)
        blocks = tape.op("Reshape", [rows, self.constant([-1, self.size])])
        return (
            tape.op("Reshape", [column, self.constant([-1, self.size, 1])]),
            tape.op("Unsqueeze", [self._neighbours(tape, blocks), self.constant([1])]),
        )
