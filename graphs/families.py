"""One traced graph to one graph a family: sequence and token."""

from __future__ import annotations

import onnx_ir as ir

from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.tasks import GraphFamily

FAMILY_OUTPUTS: dict[GraphFamily, tuple[str, str]] = {
    "sequence": ("pooled", "sentence_embedding"),
    "token": ("raw_token_embeddings", "token_embeddings"),
}
"""Raw and finished output of each family. Where the head does not normalize there is the finished one only."""


def select_family(model: ir.Model, family: GraphFamily, *, finished: bool) -> ir.Model | None:
    """Return a copy of ``model`` with the outputs of one family, None where the model has none of them.

    Args:
        model: A traced graph with the outputs of every family.
        family: Which to keep.
        finished: Keep the finished value beside the raw one.
    """
    copy = model.clone()
    raw, done = FAMILY_OUTPUTS[family]
    present = [value.name for value in copy.graph.outputs]
    wanted = [name for name in (raw, done) if name in present]
    if not wanted:
        return None
    if not finished:
        wanted = wanted[:1]
    kept = [value for value in copy.graph.outputs if value.name in wanted]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept)
    remove_dead_nodes(copy)
    return copy
