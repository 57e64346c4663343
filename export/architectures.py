"""The architecture table: one frozen row a Hugging Face class name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from poolgraph.tasks import PoolingTask

PositionRule = Literal["absolute", "offset"]
"""absolute: from 0. offset: from pad_token_id + 1, padding tokens in the text not counted (the RoBERTa family)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What cannot be read from a checkpoint's own files.

    Attributes:
        family: The module ``arch_<family>.py`` that prepares the backbone for tracing.
        task: The task of a checkpoint that does not say otherwise.
        pooling: Pooling mode where no sentence-transformers file names one.
        positions: How position ids are counted.
    """

    family: str
    task: PoolingTask
    pooling: str
    positions: PositionRule = "absolute"


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "BertModel": Architecture(family="interface", task="embed", pooling="cls"),
        "RobertaModel": Architecture(family="interface", task="embed", pooling="cls", positions="offset"),
        "XLMRobertaModel": Architecture(family="interface", task="embed", pooling="cls", positions="offset"),
        "DistilBertModel": Architecture(family="interface", task="embed", pooling="cls"),
        "MPNetModel": Architecture(family="mpnet", task="embed", pooling="cls", positions="offset"),
    }
)
"""Default pooling: vLLM's class defaults (CLS for the BERT and RoBERTa families)."""
