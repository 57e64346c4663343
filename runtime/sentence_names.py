"""The names of sentence-transformers, with its meanings: ``encode``, ``encode_query``, ``similarity`` and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypedDict, Unpack

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.runtime.embeddings import finish_embeddings
from poolgraph.runtime.loaded import progress_bar
from poolgraph.runtime.quantization import PRECISIONS, quantize_embeddings
from poolgraph.runtime.similarity import (
    LATE_INTERACTION_FUNCTIONS,
    maxsim_matrix,
    maxsim_of_pairs,
    similarity_matrix,
    similarity_pairs,
)
from poolgraph.runtime.task_embed import EmbedTasks
from poolgraph.runtime.task_late_interaction import LateInteractionTasks
from poolgraph.runtime.texts import resolve_texts, warn_of_cuts

Texts: TypeAlias = str | Sequence[str]
Encoded: TypeAlias = NDArray[Any] | list[NDArray[Any]]

OUTPUT_VALUES: Final = ("sentence_embedding", "token_embeddings")

_REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "convert_to_tensor": "there is no torch at run time; call torch.from_numpy on the answer",
        "device": "the provider is chosen when the model is loaded, by PoolingModel.load(provider=...)",
        "pool": "there are no worker processes: one call uses all cores of this one",
        "chunk_size": "there are no worker processes: one call uses all cores of this one",
    }
)
"""Options of sentence-transformers that have no meaning here, and what to do instead."""


class EncodeOptions(TypedDict, total=False):
    """The options of ``encode`` that ``encode_query`` and ``encode_document`` take as they are."""

    batch_size: int
    show_progress_bar: bool | None
    output_value: str
    precision: str
    convert_to_numpy: bool
    convert_to_tensor: bool
    device: None
    normalize_embeddings: bool
    truncate_dim: int | None
    pool: None
    chunk_size: None
    sentences: Texts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The checked options of one call; the defaults are sentence-transformers'."""

    batch_size: int = 32
    show_progress_bar: bool | None = None
    output_value: str = "sentence_embedding"
    precision: str = "float32"
    convert_to_numpy: bool = True
    convert_to_tensor: bool = False
    device: None = None
    normalize_embeddings: bool = False
    truncate_dim: int | None = None
    pool: None = None
    chunk_size: None = None

    def __post_init__(self) -> None:
        for name, cure in _REFUSED.items():
            if getattr(self, name):
                raise InputError(f"{name} has no meaning here: {cure}", parameter=name, value=getattr(self, name))
        for name, allowed in (("output_value", OUTPUT_VALUES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} {getattr(self, name)!r} is not supported; choose one of {list(allowed)}",
                    parameter=name,
                    value=getattr(self, name),
                )
        for name in ("batch_size", "truncate_dim"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a positive int, got {value!r}", parameter=name, value=value)

    def convert(self, answers: NDArray[np.float32] | list[NDArray[np.float32]], *, lone: bool) -> Encoded:
        """Quantize the answers, and unpack that of a lone text."""
        converted: Any = answers if self.precision == "float32" else quantize_embeddings(answers, self.precision)
        if lone:
            return converted[0]
        return list(converted) if not self.convert_to_numpy else converted
