"""Texts in files: lines, JSON lines, CSV and Parquet, read as a stream with errors that name the place."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec

from poolgraph.errors import InputError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

STANDARD_INPUT: Final = "-"
DEFAULT_FIELD: Final = "text"
FILES_CURE: Final = 'install pyarrow with: pip install "poolgraph[files]"'

_PARQUET_BATCH_ROWS: Final = 1024
_MAX_CSV_FIELD_CHARACTERS: Final = 2**31 - 1
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """A kind of file that holds texts; ``read`` takes its path and the field that holds the text."""

    name: str
    suffixes: tuple[str, ...]
    has_fields: bool
    read: Callable[[str, str], Iterator[str]]


def read_texts(path: str | Path, *, field: str | None = None, file_format: str | None = None) -> Iterator[str]:
    """Yield the texts of a file one by one, never holding the whole file.

    Args:
        path: The file, or ``-`` for standard input.
        field: The column that holds the text in jsonl, csv and parquet; "text" unless told.
        file_format: txt, jsonl, csv or parquet; by the file's suffix unless told, txt for standard input.

    Raises:
        InputError: the format is unknown, or (while reading) a line, row or column is not what it should be.
    """
    chosen = choose_format(path, file_format)
    if field is not None and not chosen.has_fields:
        raise InputError(f"{_name(path)} is read as {chosen.name}, which has no fields", parameter="field", value=field)
    return _refuse_empty(str(path), chosen.read(str(path), field or DEFAULT_FIELD))


def count_texts(path: str | Path, *, field: str | None = None, file_format: str | None = None) -> int | None:
    """Read a file once to check every text and count them; None for standard input, which is read only once."""
    if str(path) == STANDARD_INPUT:
        return None
    return sum(1 for _ in read_texts(path, field=field, file_format=file_format))


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


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def _refuse_empty(path: str, texts: Iterator[str]) -> Iterator[str]:
    is_empty = True
    for text in texts:
        is_empty = False
        yield text
    if is_empty:
        raise InputError(f"{_name(path)} holds no text")


def _open_bytes(path: str) -> AbstractContextManager[IO[bytes]]:
    if path == STANDARD_INPUT:
        # None when the process was started with it closed.
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file, or pipe the texts in")
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _read_byte_lines(path: str) -> Iterator[tuple[int, bytes]]:
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _read_lines(path: str) -> Iterator[tuple[int, str]]:
    for number, line in _read_byte_lines(path):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{_name(path)}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}). "
                "Convert the file to UTF-8, for example with iconv."
            ) from error


def _read_txt(path: str, _field: str) -> Iterator[str]:
    for _, line in _read_lines(path):
        yield line.removesuffix("\n").removesuffix("\r")


def _read_jsonl(path: str, field: str) -> Iterator[str]:
    record = msgspec.json.Decoder(dict[str, msgspec.Raw])
    string = msgspec.json.Decoder(str)
    for number, line in _read_lines(path):
        if not line.strip():
            continue
        where = f"{_name(path)}, line {number}"
        try:
            fields = record.decode(line)
        except msgspec.MsgspecError as error:
            raise InputError(f"{where}: not a JSON object: {error}") from error
        if field not in fields:
            raise _missing_field(where, field, list(fields))
        try:
            yield string.decode(fields[field])
        except msgspec.MsgspecError as error:
            raise InputError(f"{where}: field {field!r} is not a string: {error}") from error


def _read_csv(path: str, field: str) -> Iterator[str]:
    # The csv module keeps one limit for the whole process, far below the length of a long document.
    csv.field_size_limit(_MAX_CSV_FIELD_CHARACTERS)
    rows = csv.reader((line for _, line in _read_lines(path)), strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        column = _choose_column(f"{_name(path)}, line 1", header, field)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{_name(path)}, line {rows.line_num}: {len(row)} columns where the header has {len(header)}"
                )
            yield row[column]
    except csv.Error as error:
        raise InputError(f"{_name(path)}, line {rows.line_num}: not valid CSV: {error}") from error


def _choose_column(where: str, header: list[str], field: str) -> int:
    if field not in header:
        raise _missing_field(where, field, header)
    if header.count(field) > 1:
        raise InputError(f"{where}: the header has {header.count(field)} columns named {field!r}; rename all but one")
    return header.index(field)


def _missing_field(where: str, field: str, names: list[str]) -> InputError:
    return InputError(f"{where}: no field {field!r}; there are {names}. Name the one with the text (--field NAME).")


def _read_parquet(path: str, field: str) -> Iterator[str]:
    if path == STANDARD_INPUT:
        raise InputError("parquet cannot be read from standard input: its index is at the end. Give a file.")
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: reading parquet needs pyarrow; {FILES_CURE}") from error
    with _open_bytes(path) as stream:
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            _check_parquet_column(path, file.schema_arrow, field)
            yield from _read_parquet_rows(path, file, field)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable parquet file: {error}") from error


def _check_parquet_column(path: str, schema: pyarrow.Schema, field: str) -> None:
    import pyarrow

    _choose_column(path, list(schema.names), field)
    kind = schema.field(field).type
    value_type = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if value_type not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise InputError(f"{path}: field {field!r} is {kind}, not a string")


def _read_parquet_rows(path: str, file: pyarrow.parquet.ParquetFile, field: str) -> Iterator[str]:
    number = 0
    for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=[field]):
        for text in batch.column(0).to_pylist():
            if text is None:
                raise InputError(f"{path}, row {number}: field {field!r} is null, not a string")
            yield text
            number += 1


TEXT_FORMATS: Final[dict[str, TextFormat]] = {
    row.name: row
    for row in (
        TextFormat(name="txt", suffixes=(".txt",), has_fields=False, read=_read_txt),
        TextFormat(name="jsonl", suffixes=(".jsonl", ".ndjson"), has_fields=True, read=_read_jsonl),
        TextFormat(name="csv", suffixes=(".csv",), has_fields=True, read=_read_csv),
        TextFormat(name="parquet", suffixes=(".parquet",), has_fields=True, read=_read_parquet),
    )
}
"""Kinds of input, by the name that ``--format`` takes."""
