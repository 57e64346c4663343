"""Tensors of a checkpoint's layers that the backbone made of it does not read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from torch import nn

from poolgraph.errors import UnsupportedArchitecture
from poolgraph.export.bind import find_tensor
from poolgraph.export.resolve import ExportPlan

LAYER: Final = re.compile(r"^.*?\.\d+\.|^\d+\.")
"""What the names of a layer's tensors begin with."""

COMPUTED: Final = ("inv_freq", "attn.bias", "attn.masked_bias", "position_ids")
"""Endings of names that older files have of what a model computes by itself: frequencies, masks, positions."""


def check_unread(plan: ExportPlan, backbone: nn.Module) -> None:
    """Check that a layout of a publisher's own leaves no tensor of a layer unread.

    Such a tensor belongs to code that is not the one known here. Layers beyond the configuration's, pooler and heads
    are left unread rightly. What transformers reads of its own layouts is its matter: it is the reference.

    Raises:
        UnsupportedArchitecture: naming the tensors.
    """
    if plan.backbone.layout is None:
        return
    weights = plan.backbone.open_weights()
    found = (find_tensor(name, weights, plan.model_class.base_model_prefix) for name in backbone.state_dict())
    if unread := find_unread({name for name in found if name is not None}, weights.names):
        raise UnsupportedArchitecture(
            f"{plan.model_class.__name__} does not read {len(unread)} tensors of the checkpoint's layers: "
            f"{', '.join(unread[:5])}; they are of other code than this layout's, so that its answers would be others"
        )


def find_unread(read: Collection[str], names: Collection[str]) -> list[str]:
    """List the tensors that stand in a layer of which others are read, sorted.

    Args:
        read: Names that are read.
        names: All names.
    """
    layers = {_layer(name) for name in read} - {None}
    return sorted(name for name in set(names) - set(read) if _layer(name) in layers and not name.endswith(COMPUTED))


def _layer(name: str) -> str | None:
    found = LAYER.match(name)
    return None if found is None else found.group()
