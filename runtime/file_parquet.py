"""Rows of text from Parquet files, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from poolgraph.errors import InputError
from poolgraph.runtime.file_readers import STANDARD_INPUT, Cell, Field, Row, check_list, choose_column, open_bytes

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

FILES_CURE: Final = 'install pyarrow with: pip install "poolgraph[files]"'

_BATCH_ROWS: Final = 1024


def read_parquet(path: str, fields: Sequence[Field]) -> Iterator[Row]:
    """Yield the columns of each row.

    Raises:
        InputError: no pyarrow, not a Parquet file, or a column that is not there, not of texts, or has a null.
    """
    if path == STANDARD_INPUT:
        raise InputError("parquet cannot be read from standard input: its index is at the end. Give a file.")
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: reading parquet needs pyarrow; {FILES_CURE}") from error
    with open_bytes(path) as stream:
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            for field in fields:
                _check_column(path, file.schema_arrow, field)
            yield from _read_rows(path, file, fields)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable parquet file: {error}") from error


def _check_column(path: str, schema: pyarrow.Schema, field: Field) -> None:
    import pyarrow

    choose_column(path, list(schema.names), field)
    kind = item = schema.field(field.key).type
    types = pyarrow.types
    if field.is_list and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        item = kind.value_type
    elif field.is_list:
        raise InputError(f"{path}: field {field.key!r} is {kind}, not a list of strings")
    item = item.value_type if types.is_dictionary(item) else item
    if item not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise InputError(
            f"{path}: field {field.key!r} is {kind}, not a {'list of strings' * field.is_list or 'string'}"
        )


def _read_rows(path: str, file: pyarrow.parquet.ParquetFile, fields: Sequence[Field]) -> Iterator[Row]:
    number = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field.key for field in fields]):
        columns = [batch.column(field.key).to_pylist() for field in fields]
        for values in zip(*columns, strict=True):
            where = f"{path}, row {number}"
            yield tuple(_check_value(where, field, value) for field, value in zip(fields, values, strict=True))
            number += 1


def _check_value(where: str, field: Field, value: Cell | list[str | None] | None) -> Cell:
    if value is None:
        raise InputError(f"{where}: field {field.key!r} is null, not a {'list of strings' * field.is_list or 'string'}")
    if isinstance(value, str):
        return value
    texts = [text for text in value if text is not None]
    if len(texts) != len(value):
        raise InputError(f"{where}: field {field.key!r} has a null among its strings")
    return check_list(where, field, texts)
