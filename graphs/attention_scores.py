"""Scores of attention in standard operators, by name: measured for fp16, and in float32 where they are too large."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import onnx_ir as ir

WATCHED: Final = ("query", "scores", "capped", "biased")
"""The scaled query, and scores from the product on: the same numbers whoever lowers the attention."""

PARTS: Final = (*WATCHED, "masked", "highest_key", "highest")
"""All that stands between a query and the weights of its keys."""


def name_part(value: ir.Value, attention: ir.Node, part: str) -> ir.Value:
    """Name a part of an attention's scores after what the attention makes; return it."""
    value.name = _name(str(attention.outputs[0].name), part)
    return value


def watched_parts(attentions: Iterable[str]) -> set[str]:
    """Return the names of what is measured of the scores of attentions, which go by what they make."""
    return {_name(made, part) for made in attentions for part in WATCHED}


def is_score(name: str) -> bool:
    """Whether a name is of a score, and not of a query."""
    return name.endswith(tuple(f".{part}" for part in PARTS if part != "query"))


def with_whole_scores(names: Collection[str]) -> tuple[str, ...]:
    """Return names with all parts of those attentions of which one part is among them, in order."""
    found = dict.fromkeys(names)
    for name in names:
        made, _, part = name.rpartition(".")
        if part in PARTS:
            found.update(dict.fromkeys(_name(made, each) for each in PARTS))
    return tuple(found)


def has_kept_scores(attention: ir.Node, kept: Collection[str]) -> bool:
    """Whether an attention's scores stay in float32."""
    return _name(str(attention.outputs[0].name), "scores") in kept


def _name(made: str, part: str) -> str:
    return f"{made}.{part}"
