"""Tables of word embeddings in 8 bits, by one scale a row; what is read of them becomes float32 again, row by row."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from poolgraph.graphs.passes import Pass
from poolgraph.graphs.pattern import BACKBONE_PREFIX, add_lazy_weight, dimensions, is_initializer, replace_node
from poolgraph.graphs.quantize_products import LARGEST, TINIEST

WORD_IDS = "input_ids"
"""The input that chooses rows of a table of words. Tables of positions and token types are short, and stay."""
FEWEST_VALUES = 1 << 17
"""Of a table worth three more nodes in every run: half a megabyte in float32. Toys have less, models ten times as much
and more."""
ROWS_AT_ONCE = 4096
"""Rows that are rounded at once, so that writing a table takes little memory beside the table's own."""

Floats = NDArray[np.float32]


def find_tables(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the backbone's tables of words that are large enough and that nothing else reads."""
    tables = dict.fromkeys(node.inputs[0] for node in model.graph if _reads_words(node))
    return tuple(str(table.name) for table in tables if table is not None and _is_whole(table))


def quantize_embeddings(tables: Collection[str]) -> Pass:
    """Return the pass that stores tables in 8 bits.

    The operators are standard, and none of them has constant inputs alone: no runtime makes a float32 table of it.

    Given:   %rows = Gather(%table, %input_ids)
    Result:  %rows = Mul(Cast(Gather(%table8, %input_ids)), Gather(%scales, %input_ids))
    """

    def pass_(model: ir.Model) -> int:
        found = set(find_tables(model)) & set(tables)
        nodes = [node for node in model.graph if _reads_words(node) and _table_name(node) in found]
        for node in nodes:
            _replace(model.graph, node)
        return len(nodes)

    pass_.__name__ = "quantize_embeddings"
    return pass_


def _reads_words(node: ir.Node) -> bool:
    """Whether ``node`` takes rows of a table of float32, one for each token id."""
    if (node.domain, node.op_type) != ("", "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    table, ids = node.inputs
    if not is_initializer(table) or not _is_words(ids):
        return False
    return _table_name(node).startswith(BACKBONE_PREFIX) and table is not None and table.dtype == ir.DataType.FLOAT


def _is_words(ids: ir.Value | None) -> bool:
    """Whether a value is the token ids as they come, or packed ones as the row that the backbone gets."""
    producer = ids.producer() if ids is not None else None
    if producer is not None and producer.op_type == "Unsqueeze":
        ids = producer.inputs[0]
    return ids is not None and ids.is_graph_input() and ids.name == WORD_IDS


def _table_name(node: ir.Node) -> str:
    return str(node.inputs[0].name) if node.inputs[0] is not None else ""


def _is_whole(table: ir.Value) -> bool:
    sizes = [size for size in dimensions(table) or () if isinstance(size, int)]
    return (
        len(sizes) == 2 and sizes[0] * sizes[1] >= FEWEST_VALUES and all(_reads_words(it.node) for it in table.uses())
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    table, ids = node.inputs
    assert table is not None
    stored = table.const_value
    assert stored is not None
    num_rows, width = stored.shape.numpy()
    integers = add_lazy_weight(
        graph, f"{table.name}.int8", ir.DataType.INT8, (num_rows, width), lambda: quantize_table(stored.numpy())
    )
    scales = add_lazy_weight(
        graph, f"{table.name}.scales", ir.DataType.FLOAT, (num_rows, 1), lambda: scale_rows(stored.numpy())
    )
    tape = Tape()
    rows = tape.op("Cast", [tape.op("Gather", [integers, ids], {"axis": 0})], {"to": ir.DataType.FLOAT})
    rows = tape.op("Mul", [rows, tape.op("Gather", [scales, ids], {"axis": 0})])
    replace_node(graph, node, tape.nodes, rows)


def scale_rows(table: Floats) -> Floats:
    """Return the scale of each row of (num_rows, width), (num_rows, 1): a row's largest value becomes LARGEST."""
    largest = np.maximum(table.max(axis=1, keepdims=True), -table.min(axis=1, keepdims=True))
    return np.asarray(np.maximum(largest, TINIEST) / LARGEST, dtype=np.float32)


def quantize_table(table: Floats) -> NDArray[np.int8]:
    """Return (num_rows, width) as integers: each row divided by its scale and rounded."""
    integers = np.empty(table.shape, dtype=np.int8)
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = table[start : start + ROWS_AT_ONCE]
        integers[start : start + ROWS_AT_ONCE] = np.clip(np.rint(rows / scale_rows(rows)), -LARGEST, LARGEST)
    return integers
