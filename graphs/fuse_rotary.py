"""Pass: rotary embeddings, which the tracer spells out, become one operator with tables of cosines and sines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from poolgraph.graphs.pattern import (
    CONTRIB_DOMAIN,
    add_integers,
    add_lazy_weight,
    dimensions,
    producer,
    scalar_of,
    stand_in,
)

MAX_LENGTH_NOTE = "poolgraph.max_length"
"""Metadata of a traced model: the longest text in tokens, for which the tables have rows."""

TABLE_STEP = 8
"""Tables have a multiple of so many rows: GroupQueryAttention refuses those with fewer rows than a padded batch has
columns, and lengths of batches are rounded up to it (``LENGTH_STEP`` of ``runtime/buckets.py``)."""

HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class _Angles:
    """``scaling * cos(positions * inverse_frequencies)``, and of sines alike."""

    positions: ir.Value
    inverse_frequencies: ir.Value
    scaling: float


@dataclass(frozen=True, slots=True)
class _Rotation:
    """Rows (batch_size, sequence_length, num_heads, head_dim), and the value that holds them rotated and flattened.

    ``norm`` is that of each head in between, where it stands behind the transpose, as Gemma 3 has it.
    """

    rows: ir.Value
    result: ir.Value
    angles: _Angles
    norm: ir.Node | None


def fuse_rotary(model: ir.Model) -> int:
    """Fuse rotary embeddings (arXiv 2104.09864) of whole heads, in the form that rotates halves.

    Their tables hold the positions up to the model's longest text, and those that padding adds to it. What is computed
    otherwise stays as it is.

    Given:   %c, %s = Cos/Sin(Concat(%f, %f)) * scaling;  %f = positions * inverse_frequencies
             %y = flatten(%x * %c + Concat(-%x[half:], %x[:half]) * %s)
    Result:  %y = com.microsoft::RotaryEmbedding(flatten(%x), positions, %cos_table, %sin_table)
    """
    graph = model.graph
    max_length = -(-int(model.metadata_props.get(MAX_LENGTH_NOTE, 0)) // TABLE_STEP) * TABLE_STEP
    found = [rotation for node in graph if (rotation := _match(node)) is not None] if max_length else []
    for rotation in found:
        _fuse(graph, rotation, max_length)
    return len(found)


def _match(node: ir.Node) -> _Rotation | None:
    if (node.domain, node.op_type) != ("", "Add"):
        return None
    straight, turned = (producer(value, "Mul") for value in node.inputs)
    if straight is None or turned is None:
        return None
    for plain, rotated in ((straight, turned), (turned, straight)):
        found = _match_products(node, plain, rotated)
        if found is not None:
            return found
    return None


def _match_products(add: ir.Node, plain: ir.Node, rotated: ir.Node) -> _Rotation | None:
    for index, value in enumerate(rotated.inputs):
        source = _turned_source(value)
        if source is None or source not in plain.inputs:
            continue
        sine, cosine = rotated.inputs[1 - index], plain.inputs[1 - list(plain.inputs).index(source)]
        angles = _match_angles(cosine, "Cos")
        if angles is None or angles != _match_angles(sine, "Sin"):
            return None
        return _match_flat(add, source, angles)
    return None


def _turned_source(value: ir.Value | None) -> ir.Value | None:
    """Return ``x`` of ``Concat(-x[half:], x[:half])`` along the last axis."""
    concat = producer(value, "Concat")
    if concat is None or len(concat.inputs) != 2:
        return None
    negated = producer(concat.inputs[0], "Neg")
    high = producer(negated.inputs[0] if negated is not None else None, "Slice")
    low = producer(concat.inputs[1], "Slice")
    if high is None or low is None or high.inputs[0] is not low.inputs[0]:
        return None
    size = (dimensions(low.inputs[0]) or (None,))[-1]
    halves = [(dimensions(half.outputs[0]) or (None,))[-1] for half in (low, high)]
    starts = [scalar_of(half.inputs[1]) for half in (low, high)]
    if not isinstance(size, int) or halves != [size // 2, size // 2] or starts != [0, size // 2]:
        return None
    return low.inputs[0]


def _match_angles(value: ir.Value | None, op_type: str) -> _Angles | None:
    spread = producer(value, "Unsqueeze")
    value = spread.inputs[0] if spread is not None else value
    scaling, scaled = 1.0, producer(value, "Mul")
    if scaled is not None:
        number = scalar_of(scaled.inputs[1])
        if number is None:
            return None
        scaling, value = number, scaled.inputs[0]
    function = producer(value, op_type)
    twice = producer(function.inputs[0] if function is not None else None, "Concat")
    if twice is None or len(twice.inputs) != 2 or twice.inputs[0] is not twice.inputs[1]:
        return None
    product = producer(twice.inputs[0], "Mul")
    cast = producer(product.inputs[0] if product is not None else None, "Cast")
    positions = producer(cast.inputs[0] if cast is not None else None, "Unsqueeze")
    if product is None or positions is None or positions.inputs[0] is None:
        return None
    inverse = product.inputs[1]
    if inverse is None or inverse.const_value is None or len(dimensions(positions.inputs[0]) or ()) != 2:
        return None
    return _Angles(positions.inputs[0], inverse, scaling)


def _match_flat(add: ir.Node, source: ir.Value, angles: _Angles) -> _Rotation | None:
    """Match the transposes around, a norm behind the first, and the flattening behind."""
    norm = producer(source, "SimplifiedLayerNormalization")
    before = producer(source if norm is None else norm.inputs[0], "Transpose")
    users = [use.node for use in add.outputs[0].uses()]
    if before is None or not _is_heads_first(before) or len(users) != 1 or users[0].op_type != "Transpose":
        return None
    behind = [use.node for use in users[0].outputs[0].uses()]
    if not _is_heads_first(users[0]) or len(behind) != 1 or behind[0].op_type != "Reshape":
        return None
    result, rows = behind[0].outputs[0], before.inputs[0]
    shape, flat = dimensions(rows) or (), dimensions(result) or ()
    if rows is None or len(shape) != 4 or len(flat) != 3 or flat[:2] != shape[:2]:
        return None
    return _Rotation(rows, result, angles, norm)


def _is_heads_first(node: ir.Node) -> bool:
    return tuple(node.attributes["perm"].as_ints()) == HEADS_FIRST


def _fuse(graph: ir.Graph, rotation: _Rotation, max_length: int) -> None:
    shape = dimensions(rotation.rows) or ()
    heads, size = int(shape[2]), int(shape[3])
    anchor = rotation.result.producer()
    assert anchor is not None
    rows = _normalized(graph, rotation, anchor)
    flat = add_integers(graph, [0, 0, heads * size])
    reshape = ir.node("Reshape", [rows, flat])
    reshape.outputs[0].shape, reshape.outputs[0].type = rotation.result.shape, rotation.result.type
    tables = [_table(graph, rotation.angles, name, max_length) for name in ("cos", "sin")]
    graph.opset_imports[CONTRIB_DOMAIN] = 1
    fused = ir.node(
        "RotaryEmbedding",
        [reshape.outputs[0], rotation.angles.positions, *tables],
        {"num_heads": heads},
        domain=CONTRIB_DOMAIN,
    )
    reshape.outputs[0].name = f"{rotation.result.name}.straight"
    graph.insert_before(anchor, [reshape, fused])
    stand_in(fused.outputs[0], rotation.result)


def _normalized(graph: ir.Graph, rotation: _Rotation, anchor: ir.Node) -> ir.Value:
    """Return the rows with the norm of each head, which is along the last axis wherever the others are."""
    if rotation.norm is None:
        return rotation.rows
    norm = ir.node(rotation.norm.op_type, [rotation.rows, *rotation.norm.inputs[1:]], rotation.norm.attributes)
    result = norm.outputs[0]
    result.shape, result.type = rotation.rows.shape, rotation.norm.outputs[0].type
    result.name = f"{rotation.result.name}.normalized"
    graph.insert_before(anchor, norm)
    return result


def _table(graph: ir.Graph, angles: _Angles, function: str, max_length: int) -> ir.Value:
    """Return a table of cosines or sines, (max_length, head_dim / 2) in float32, one for all layers that share it."""
    tensor = angles.inverse_frequencies.const_value
    assert tensor is not None
    inverse = tensor.numpy().astype(np.float64).reshape(-1)
    digest = hashlib.sha256(inverse.tobytes() + np.float64(angles.scaling).tobytes()).hexdigest()[:8]

    def load() -> np.ndarray:
        turns = np.arange(max_length, dtype=np.float64)[:, None] * inverse[None, :]
        waves: np.ndarray = getattr(np, function)(turns) * angles.scaling
        return waves.astype(np.float32)

    name = f"rotary_{function}_{digest}_{max_length}"
    return add_lazy_weight(graph, name, ir.DataType.FLOAT, (max_length, inverse.size), load)
