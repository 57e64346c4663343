"""Where the rows of a job are: a path or standard input, its format and its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from poolgraph.errors import InputError
from poolgraph.runtime.file_parquet import read_parquet
from poolgraph.runtime.file_readers import STANDARD_INPUT, Field, Row, name_input, read_csv, read_jsonl, read_txt

TEXT: Final = Field()
"""The field of files that hold one text a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """A kind of file that holds rows of text; ``read`` takes its path and the fields wanted."""

    name: str
    suffixes: tuple[str, ...]
    has_fields: bool
    read: Callable[[str, Sequence[Field]], Iterator[Row]]


class FileSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the items of a job are.

    Attributes:
        path: A path, or ``-`` for standard input.
        fields: The fields of an item, in the order in which its task takes them.
        file_format: txt, jsonl, csv or parquet; None goes by the suffix, txt for standard input.
        query: Makes the whole file one item: this query, and all texts of the file as its documents.
    """

    path: str
    fields: tuple[Field, ...] = (TEXT,)
    file_format: str | None = None
    query: str | None = None

    def read(self) -> Iterator[Row]:
        """Yield the items one by one, never holding the whole file unless ``query`` makes it one item.

        Raises:
            InputError: the format is unknown, or (while reading) a line, row or column is not what it should be.
        """
        chosen = choose_format(self.path, self.file_format)
        self._check_fields(chosen)
        rows = _refuse_empty(self.path, chosen.read(self.path, self.fields))
        if self.query is None:
            return rows
        return iter([(self.query, [str(text) for (text,) in rows])])

    def count(self) -> int | None:
        """Read the file once to check every row and count the items; None for standard input, read only once."""
        if self.path == STANDARD_INPUT:
            return None
        return sum(1 for _ in self.read())

    def _check_fields(self, chosen: TextFormat) -> None:
        if chosen.has_fields:
            return
        named = next((field.name for field in self.fields if field.name is not None), None)
        wanted = ", ".join(field.key for field in self.fields)
        where = f"{name_input(self.path)} is read as {chosen.name}"
        if len(self.fields) > 1:
            raise InputError(f"{where}, which has one text a line, not {wanted}; give jsonl, csv or parquet (--format)")
        if named is not None:
            raise InputError(f"{where}, which has no fields", parameter="field", value=named)


def choose_format(path: str | Path, file_format: str | None = None) -> TextFormat:
    """Return the format asked for, else the one of the file's suffix; raise InputError listing the formats."""
    if file_format is None:
        if str(path) == STANDARD_INPUT:
            return TEXT_FORMATS["txt"]
        suffix = Path(path).suffix.lower()
        for row in TEXT_FORMATS.values():
            if suffix in row.suffixes:
                return row
        known = ", ".join(suffix for row in TEXT_FORMATS.values() for suffix in row.suffixes)
        formats = ", ".join(TEXT_FORMATS)
        raise InputError(f"{path}: the suffix {suffix!r} is none of {known}. Say the format (--format): {formats}.")
    if file_format not in TEXT_FORMATS:
        raise InputError(f"the format must be one of {', '.join(TEXT_FORMATS)}", parameter="format", value=file_format)
    return TEXT_FORMATS[file_format]


def _refuse_empty(path: str, rows: Iterator[Row]) -> Iterator[Row]:
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise InputError(f"{name_input(path)} holds no text")


TEXT_FORMATS: Final[dict[str, TextFormat]] = {
    row.name: row
    for row in (
        TextFormat(name="txt", suffixes=(".txt",), has_fields=False, read=read_txt),
        TextFormat(name="jsonl", suffixes=(".jsonl", ".ndjson"), has_fields=True, read=read_jsonl),
        TextFormat(name="csv", suffixes=(".csv",), has_fields=True, read=read_csv),
        TextFormat(name="parquet", suffixes=(".parquet",), has_fields=True, read=read_parquet),
    )
}
"""Kinds of input, by the name that ``--format`` takes."""
