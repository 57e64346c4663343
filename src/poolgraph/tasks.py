"""The words for what a pooling model does: tasks, pooling types, graph families."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, get_args

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
"""What a model is able to answer, in vLLM's words."""

SequencePoolingType = Literal["CLS", "LAST", "MEAN"]
TokenPoolingType = Literal["ALL", "STEP"]

POOLING_MODES: Final[Mapping[str, str]] = MappingProxyType({"CLS": "cls", "LAST": "lasttoken", "MEAN": "mean"})
"""Sentence-transformers' names of vLLM's pooling types of sequences."""

EXPORT_TASKS: Final = ("auto", "embed", "classify", "score", "reward", "token_embed", "token_classify")
CONVERSIONS: Final = ("auto", "none", "embed", "classify")
RUNNERS: Final = ("auto", "pooling")
"""What callers may ask an artifact to be for, a model to be made into, and vLLM's ``runner`` to be."""

Side = Literal["query", "document"]
SIDES: Final[tuple[Side, Side]] = ("query", "document")
"""The two sides of a search."""

GraphFamily = Literal["sequence", "token"]
"""One answer a text, or one answer a token of it. A variant has one graph a family."""

RunFamily = Literal["sequence", "token", "query"]
"""What is run for a text: the graph of a family, or, for queries of a model that has a table for them, the table."""

POOLING_TASKS: Final[tuple[str, ...]] = get_args(PoolingTask)

TASK_FAMILY: Final[dict[str, GraphFamily]] = {
    "embed": "sequence",
    "classify": "sequence",
    "token_embed": "token",
    "token_classify": "token",
}
