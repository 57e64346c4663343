"""Rows of text from files of lines, JSON lines and CSV, read as a stream with errors that name the place."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import msgspec

from poolgraph.errors import InputError

STANDARD_INPUT: Final = "-"

Cell: TypeAlias = str | list[str]
Row: TypeAlias = tuple[Cell, ...]

_MAX_CSV_FIELD_CHARACTERS: Final = 2**31 - 1
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field of each row of a file.

    Attributes:
        default: Its name unless told.
        name: Its name as told, None where it was not.
        option: What tells it on the command line, for messages.
        is_list: Whether it holds a list of texts, not one text.
    """

    default: str = "text"
    name: str | None = None
    option: str = "--field"
    is_list: bool = False

    @property
    def key(self) -> str:
        """The name that is looked for."""
        return self.default if self.name is None else self.name


def name_input(path: str | Path) -> str:
    """Return the input's name in messages."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def open_bytes(path: str) -> AbstractContextManager[IO[bytes]]:
    """Open the input as bytes; standard input is not closed at the end.

    Raises:
        InputError: it cannot be read.
    """
    if path == STANDARD_INPUT:
        # None when the process was started with it closed.
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file, or pipe the texts in")
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        # A name that no file can have.
        raise InputError(f"cannot read {path!r}: {error}") from error


def read_txt(path: str, _fields: Sequence[Field]) -> Iterator[Row]:
    """Yield each line as a row of one text, without its end; an empty line is an empty text."""
    for _, line in _read_lines(path):
        yield (line.removesuffix("\n").removesuffix("\r"),)


def read_jsonl(path: str, fields: Sequence[Field]) -> Iterator[Row]:
    """Yield the fields of each line's object; lines of white space are passed over.

    Raises:
        InputError: a line that is no object, or lacks a field or has another value there; the message names it.
    """
    record = msgspec.json.Decoder(dict[str, msgspec.Raw])
    readers: list[tuple[Field, msgspec.json.Decoder[Any]]] = [
        (field, msgspec.json.Decoder(list[str] if field.is_list else str)) for field in fields
    ]
    for number, line in _read_lines(path):
        if not line.strip():
            continue
        where = f"{name_input(path)}, line {number}"
        try:
            values = record.decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InputError(f"{where}: not a JSON object: {error}") from error
        yield tuple(_read_value(where, values, field, decoder) for field, decoder in readers)


def read_csv(path: str, fields: Sequence[Field]) -> Iterator[Row]:
    """Yield the columns of each row; the first line names them.

    Raises:
        InputError: no such column, a list is asked for, or a row of another length.
    """
    for field in fields:
        if field.is_list:
            raise InputError(f"{name_input(path)}: csv has no lists, as {field.key!r} must be; give jsonl or parquet")
    # The csv module keeps one limit for the whole process, far below the length of a long document.
    csv.field_size_limit(_MAX_CSV_FIELD_CHARACTERS)
    rows = csv.reader((line for _, line in _read_lines(path)), strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        columns = [choose_column(f"{name_input(path)}, line 1", header, field) for field in fields]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{name_input(path)}, line {rows.line_num}: {len(row)} columns where the header has {len(header)}"
                )
            yield tuple(row[column] for column in columns)
    except csv.Error as error:
        raise InputError(f"{name_input(path)}, line {rows.line_num}: not valid CSV: {error}") from error


def choose_column(where: str, header: list[str], field: Field) -> int:
    """Return the index of a field in a header.

    Raises:
        InputError: it is not there, or more than once.
    """
    if field.key not in header:
        raise _missing_field(where, field, header)
    if header.count(field.key) > 1:
        raise InputError(
            f"{where}: the header has {header.count(field.key)} columns named {field.key!r}; rename all but one"
        )
    return header.index(field.key)


def check_list(where: str, field: Field, value: Cell) -> Cell:
    """Return the value of a field; raise InputError for a list without any text."""
    if not value and field.is_list:
        raise InputError(f"{where}: field {field.key!r} is an empty list; give at least one text")
    return value


def _read_lines(path: str) -> Iterator[tuple[int, str]]:
    for number, line in _read_byte_lines(path):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name_input(path)}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start}). Convert the file to UTF-8, for example with iconv."
            ) from error


def _read_byte_lines(path: str) -> Iterator[tuple[int, bytes]]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _read_value(where: str, values: dict[str, msgspec.Raw], field: Field, decoder: msgspec.json.Decoder[Any]) -> Cell:
    if field.key not in values:
        raise _missing_field(where, field, list(values))
    try:
        value: Cell = decoder.decode(values[field.key])
    except msgspec.MsgspecError as error:
        kind = "a list of strings" if field.is_list else "a string"
        raise InputError(f"{where}: field {field.key!r} is not {kind}: {error}") from error
    return check_list(where, field, value)


def _missing_field(where: str, field: Field, names: list[str]) -> InputError:
    return InputError(
        f"{where}: no field {field.key!r}; there are {names}. Name the one with the text ({field.option} NAME)."
    )
