"""The engines measured: a row each, the first being the one that ratios are taken against."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Adapter(Protocol):
    """What an ``engine_*.py`` file defines; heavy imports belong inside ``load``, whose time is reported."""

    label: str

    def load(self, checkpoint_dir: Path, artifact_dir: Path, cache_dir: Path, **options: Any) -> Any:
        """Return the engine, ready to embed; slow preparations are kept in ``cache_dir``."""

    def embed(self, engine: Any, texts: list[str], **options: int) -> NDArray[np.float32]:
        """Return ``(num_texts, embedding_size)``, rows in the order of ``texts``; options only if the row has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """An adapter and how it is used.

    Attributes:
        module: The file of the adapter.
        options: What its ``load`` is given.
        batch_sizes: Values of ``embed``'s ``batch_size`` that its users choose between: each is measured and the faster
            one counts. Empty for an adapter that decides by itself.
    """

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = ()

    @property
    def adapter(self) -> Adapter:
        """The adapter's module."""
        return import_module(self.module)  # type: ignore[return-value]

    def embed(self, engine: Any, texts: list[str], batch_size: int | None) -> NDArray[np.float32]:
        """Embed texts, in batches of the size given where the adapter takes one."""
        options = {} if batch_size is None else {"batch_size": batch_size}
        return self.adapter.embed(engine, texts, **options)

    @property
    def label(self) -> str:
        """The name shown in tables."""
        return f"{self.adapter.label} {self.options.get('precision', 'fp32')}"


REFERENCE = "sentence-transformers-fp32"
SUBJECT = "poolgraph-fp32"

BATCH_SIZES = (8, 32)

ENGINES = {
    SUBJECT: EngineRow(module="engine_poolgraph", options={"precision": "fp32"}),
    "poolgraph-int8": EngineRow(module="engine_poolgraph", options={"precision": "int8"}),
    "poolgraph-bf16": EngineRow(module="engine_poolgraph", options={"precision": "bf16"}),
    REFERENCE: EngineRow(module="engine_sentence_transformers", options={"precision": "fp32"}, batch_sizes=BATCH_SIZES),
    "sentence-transformers-bf16": EngineRow(
        module="engine_sentence_transformers", options={"precision": "bf16"}, batch_sizes=BATCH_SIZES
    ),
    "openvino-fp32": EngineRow(module="engine_openvino", options={"precision": "fp32"}),
    "openvino-bf16": EngineRow(module="engine_openvino", options={"precision": "bf16"}),
    "openvino-int8": EngineRow(module="engine_openvino", options={"precision": "int8"}),
    "transformers-exporter-fp32": EngineRow(module="engine_transformers_exporter", batch_sizes=BATCH_SIZES),
}
