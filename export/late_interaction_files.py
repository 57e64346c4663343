"""The files in which late-interaction checkpoints keep their options, read into records."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

CLASSIC_QUERY_LENGTH: Final = 32
"""Tokens of a query in the ColBERT paper; the default of PyLate and of Stanford's code."""


class Expansion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How queries are filled up: sentence-transformers' QueryExpansionConfig.

    ``token`` None stands for the tokenizer's mask token, else its end token.
    """

    strategy: Literal["fixed", "min"]
    length: int
    attend: bool = False
    token: str | None = None


class Knobs(msgspec.Struct, frozen=True):
    """Options of the Transformer module; a missing key leaves the choice to others, a null is a choice."""

    query_length: int | UnsetType | None = UNSET
    document_length: int | UnsetType | None = UNSET
    query_expansion: Expansion | UnsetType | None = UNSET


class Settings(Knobs, frozen=True):
    """What is read of ``config_sentence_transformers.json``, most of it PyLate's."""

    model_type: str | None = None
    similarity_fn_name: str | None = None
    query_prefix: str | UnsetType | None = UNSET
    document_prefix: str | UnsetType | None = UNSET
    do_query_expansion: bool | UnsetType | None = UNSET
    attend_to_expansion_tokens: bool | UnsetType | None = UNSET
    attend_to_mask_tokens: bool | UnsetType | None = UNSET
    skiplist_words: list[str] | UnsetType | None = UNSET

    @property
    def is_pylate(self) -> bool:
        """Whether PyLate wrote the file: any of its keys is there."""
        return any(getattr(self, key) is not UNSET for key in PYLATE_KEYS)

    @property
    def markers(self) -> dict[str, str]:
        """Prefixes by side, of the sides that the file names."""
        prefixes = {"query": self.query_prefix, "document": self.document_prefix}
        return {side: prefix or "" for side, prefix in prefixes.items() if prefix is not UNSET}

    def skip_words(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """Return the skip list, ``default`` where the file has none."""
        return default if self.skiplist_words is UNSET or self.skiplist_words is None else tuple(self.skiplist_words)

    def transformer_knobs(self) -> Knobs:
        """Return the Transformer's options that stand here, PyLate's older names translated."""
        # A null length is no choice here, unlike in the module's own file; a null expansion is one.
        lengths = {name: _no_choice(getattr(self, name)) for name in ("query_length", "document_length")}
        if self.query_expansion is not UNSET or not self.is_pylate:
            return Knobs(**lengths, query_expansion=self.query_expansion)
        if self.do_query_expansion is False:
            return Knobs(**lengths, query_expansion=None)
        attend = first_set(self.attend_to_expansion_tokens, self.attend_to_mask_tokens)
        length = first_set(lengths.pop("query_length")) or CLASSIC_QUERY_LENGTH
        return Knobs(**lengths, query_expansion=Expansion(strategy="fixed", length=length, attend=attend is True))


class Metadata(msgspec.Struct, frozen=True):
    """What is read of Stanford's ``artifact.metadata``."""

    query_token_id: str | None = None
    doc_token_id: str | None = None
    query_maxlen: int | None = None
    doc_maxlen: int | None = None
    attend_to_mask_tokens: bool | None = None
    mask_punctuation: bool | None = True


class Mask(msgspec.Struct, frozen=True):
    """Configuration of a MultiVectorMask module."""

    skiplist_words: list[str] | None = None
    skiplist_tasks: list[str] | str | None = None
    keep_only_token_ids: list[int] | None = None


PYLATE_KEYS: Final = (
    "query_length",
    "document_length",
    "query_expansion",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "query_prefix",
    "document_prefix",
    "skiplist_words",
)
"""Keys of which any shows that PyLate wrote ``config_sentence_transformers.json``."""


def first_set(*values: Any) -> Any:
    """Return the first value that a file has, None where none has one."""
    return next((value for value in values if value is not UNSET), None)


def _no_choice(value: Any) -> Any:
    return UNSET if value is None else value
