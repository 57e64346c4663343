"""One traced graph to one graph a family: sequence and token."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import onnx_ir as ir

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.tasks import GraphFamily

AnswerKind = Literal["embedding", "logits"]

OUTPUT_NAMES: Mapping[tuple[AnswerKind, GraphFamily], tuple[str, str]] = MappingProxyType(
    {
        ("embedding", "sequence"): ("pooled", "sentence_embedding"),
        ("embedding", "token"): ("raw_token_embeddings", "token_embeddings"),
        ("logits", "sequence"): ("logits", "logits"),
        ("logits", "token"): ("token_logits", "token_logits"),
    }
)
"""Raw and finished output of each family. Where the head does not normalize there is the finished one only; logits are
finished by whoever reads them, as transformers' own graphs leave them."""

EXPORTED_NAMES = {"token_logits": "logits"}
"""Outputs that have another name in a file of their own than beside the other family's."""


def family_outputs(model: ir.Model, family: GraphFamily) -> list[ir.Value]:
    """Return the outputs of one family in a traced graph, the raw one first; empty where the graph has none."""
    names = [name for (_, one), pair in OUTPUT_NAMES.items() if one == family for name in pair]
    present = {value.name: value for value in model.graph.outputs}
    return [present[name] for name in dict.fromkeys(names) if name in present]


def select_raw(model: ir.Model) -> tuple[ir.Model, dict[GraphFamily, str]]:
    """Return a copy of a traced graph with the raw output of every family that it has, and the outputs' names."""
    copy = model.clone()
    found = {family: family_outputs(copy, family)[:1] for family in get_args(GraphFamily)}
    kept = {family: outputs[0] for family, outputs in found.items() if outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept.values())
    remove_dead_nodes(copy)
    return copy, {family: str(value.name) for family, value in kept.items()}


def finished_name(kind: AnswerKind, family: GraphFamily) -> str:
    """Return the name of a family's finished output in a file of its own."""
    name = OUTPUT_NAMES[kind, family][1]
    return EXPORTED_NAMES.get(name, name)


def select_family(model: ir.Model, family: GraphFamily, *, finished: bool) -> ir.Model | None:
    """Return a copy of ``model`` with the outputs of one family, None where the model has none of them.

    Args:
        model: A traced graph with the outputs of every family.
        family: Which to keep.
        finished: Keep the finished value beside the raw one.
    """
    copy = model.clone()
    kept = family_outputs(copy, family)
    if not kept:
        return None
    if not finished:
        kept = kept[:1]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept)
    for value in kept:
        value.name = EXPORTED_NAMES.get(str(value.name), value.name)
    remove_dead_nodes(copy)
    return copy
