"""The words for what a pooling model does: tasks, pooling types, graph families."""

from __future__ import annotations

from typing import Final, Literal, get_args

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
"""What a model is able to answer, in vLLM's words."""

SequencePoolingType = Literal["CLS", "LAST", "MEAN"]
TokenPoolingType = Literal["ALL", "STEP"]

GraphFamily = Literal["sequence", "token"]
"""One answer a text, or one answer a token of it. A variant has one graph a family."""

POOLING_TASKS: Final[tuple[str, ...]] = get_args(PoolingTask)

TASK_FAMILY: Final[dict[str, GraphFamily]] = {
    "embed": "sequence",
    "classify": "sequence",
    "token_embed": "token",
    "token_classify": "token",
}
