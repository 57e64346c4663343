"""The options of sentence-transformers' ``encode``: which have an effect, which are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.quantization import PRECISIONS, quantize_embeddings
from poolgraph.runtime.texts import resolve_texts

Texts: TypeAlias = str | Sequence[str]
Encoded: TypeAlias = NDArray[Any] | list[NDArray[Any]]

OUTPUT_VALUES: Final = ("sentence_embedding", "token_embeddings")

_REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "convert_to_tensor": "there is no torch at run time; call torch.from_numpy on the answer",
        "device": "the provider is chosen when the model is loaded, by PoolingModel.load(provider=...)",
        "pool": "there are no worker processes: one call uses all cores of this one",
        "chunk_size": "there are no worker processes: one call uses all cores of this one",
        "convert_to_sparse_tensor": "there is no torch at run time; embed_sparse answers without the zeros",
    }
)
"""Options of sentence-transformers that have no meaning here, and what to do instead."""


class SparseOptions(TypedDict, total=False):
    """The options that only sparse embeddings have.

    Attributes:
        convert_to_sparse_tensor: Refused: there is no torch at run time.
        save_to_cpu: Without effect: that is where answers are.
        max_active_dims: Keep so many of the largest weights; None does as the model says.
    """

    convert_to_sparse_tensor: bool
    save_to_cpu: bool
    max_active_dims: int | None


class EncodeOptions(SparseOptions, total=False):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
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
    convert_to_sparse_tensor: bool = False
    save_to_cpu: bool = False
    max_active_dims: int | None = None

    def __post_init__(self) -> None:
        for name, cure in _REFUSED.items():
            if getattr(self, name):
                raise InputError(f"{name} has no meaning here: {cure}", parameter=name, value=getattr(self, name))
        for name, allowed in (("output_value", OUTPUT_VALUES), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} {getattr(self, name)!r} is not supported; choose one of {list(allowed)}",
                    parameter=name,
                    value=getattr(self, name),
                )
        for name in ("batch_size", "truncate_dim", "max_active_dims"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
                raise InputError(f"{name} must be a positive int, got {value!r}", parameter=name, value=value)

    def convert(self, answers: NDArray[np.float32] | list[NDArray[np.float32]], *, lone: bool) -> Encoded:
        """Quantize the answers, and unpack that of a lone text."""
        converted = answers if self.precision == "float32" else quantize_embeddings(answers, self.precision)
        if lone:
            row: NDArray[Any] = converted[0]
            return row
        return converted if self.convert_to_numpy else list(converted)


def take_texts(inputs: Texts | None, sentences: Texts | None) -> tuple[list[str], bool]:
    """Return the texts, and whether it is a lone one.

    Raises:
        InputError: both names, or neither, are given, or something that is no text.
    """
    if (inputs is None) == (sentences is None):
        raise InputError("pass the texts as inputs, or by its older name sentences, and not both", parameter="inputs")
    given = sentences if inputs is None else inputs
    if isinstance(given, list | tuple) and not given:
        return [], False
    assert given is not None
    return resolve_texts(given), isinstance(given, str)
