"""Cleaning: constants folded, what no output needs removed, names and notes that only the tracer reads dropped."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer


def fold_constants(model: ir.Model) -> int:
    """Compute what depends on no input.

    The arithmetic of shapes that remains is left to ``fold_reshapes``. Weights must be bound first: small ones may be
    computed with.
    """
    before = len(model.graph)
    optimizer.fold_constants(model, onnx_shape_inference=False)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def remove_dead_nodes(model: ir.Model) -> int:
    """Remove identities, repeated computations, nodes and initializers that no output needs."""
    before = len(model.graph) + len(model.graph.initializers)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return before - len(model.graph) - len(model.graph.initializers)


def clear_notes(model: ir.Model) -> int:
    """Remove what the tracer noted beside the graph, its files' paths too, so that equal exports give equal bytes."""
    graph = model.graph
    noted = sum(bool(item.metadata_props or item.doc_string) for item in (model, graph, *graph))
    common.ClearMetadataAndDocStringPass()(model)
    for index, node in enumerate(graph):
        node.name = f"{node.op_type}_{index}"
    for value in [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]:
        value.metadata_props.clear()
    graph.name = "poolgraph"
    model.doc_string = graph.doc_string = None
    model.producer_name, model.producer_version = "poolgraph", None
    return noted
