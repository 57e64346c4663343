"""Answers in files: npy, JSON lines and Parquet, written piece by piece and complete under their name or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np

from poolgraph.errors import InputError
from poolgraph.runtime.file_columns import Answers, Numbers, count_rows, encode_jsonl
from poolgraph.runtime.file_parquet import FILES_CURE

ROWS_PER_GROUP: Final = 16_384
BYTES_PER_GROUP: Final = 64 * 2**20
"""A row group of a Parquet file ends at whichever comes first."""


class AnswerWriter(Protocol):
    """A place that takes answers in order."""

    def append(self, answers: Answers) -> None:
        """Add rows."""

    def close(self) -> None:
        """Release the file; what was written stays."""


class PartialWriter(AnswerWriter, Protocol):
    """A writer into a working file that survives interruptions."""

    def sync(self) -> int:
        """Bring everything appended onto the disk; return the working file's size in bytes."""

    def finish(self, output: Path) -> None:
        """Complete the working file and give it its final name."""


class JsonlStream:
    """Answers as JSON lines on a binary stream, such as standard output."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._num_rows = 0

    def append(self, answers: Answers) -> None:
        """Write one line a row and flush."""
        self._stream.writelines(encode_jsonl(answers, self._num_rows))
        self._stream.flush()
        self._num_rows += count_rows(answers)

    def close(self) -> None:
        """Leave the stream open: it belongs to the caller."""


class _WorkingFile:
    """A file cut back to its last known good size, then appended to."""

    def __init__(self, path: Path, *, array: str | None, num_rows: int, size_bytes: int) -> None:
        self.path = path
        self.array = array
        self.num_rows = num_rows
        self.file: IO[bytes] = path.open("r+b" if size_bytes else "w+b")
        self.file.truncate(size_bytes)
        self.file.seek(size_bytes)

    def sync(self) -> int:
        """Bring everything appended onto the disk; return the working file's size in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Release the file; what was written stays."""
        self.file.close()

    def finish(self, output: Path) -> None:
        """Give the file its final name."""
        self.sync()
        self.close()
        self.path.replace(output)


class JsonlWriter(_WorkingFile):
    """Answers as lines ``{"index": i, ...}``."""

    def append(self, answers: Answers) -> None:
        """Add rows."""
        self.file.writelines(encode_jsonl(answers, self.num_rows))
        self.num_rows += count_rows(answers)


class NpyWriter(_WorkingFile):
    """One column of numbers as a float32 array ``(num_rows, ...)`` in C order, as ``numpy.save`` writes it.

    The header has the same size whatever the number of rows, so it is written first for none and again at the end.
    """

    def __init__(self, path: Path, *, array: str | None, num_rows: int, size_bytes: int) -> None:
        super().__init__(path, array=array, num_rows=num_rows, size_bytes=size_bytes)
        self._row_shape = _read_row_shape(path) if num_rows else None

    def append(self, answers: Answers) -> None:
        """Add rows; the first call fixes their shape.

        Raises:
            InputError: rows of another shape.
        """
        column = answers[self.array or ""]
        assert isinstance(column, Numbers)
        rows = column.values
        if self._row_shape is None:
            self._row_shape = rows.shape[1:]
            self.file.write(_encode_npy_header(0, self._row_shape))
        if rows.shape[1:] != self._row_shape:
            raise InputError(f"rows of shape {rows.shape[1:]} after rows of {self._row_shape} in {self.path}")
        self.file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.num_rows += len(rows)

    def finish(self, output: Path) -> None:
        """Write the header that counts every row, and give the file its final name."""
        assert self._row_shape is not None
        self.file.seek(0)
        self.file.write(_encode_npy_header(self.num_rows, self._row_shape))
        super().finish(output)


class ParquetWriter(_WorkingFile):
    """Answers as columns, ``index`` (int64) before them.

    A Parquet file cannot be appended to after an interruption, so the working file is a stream of Arrow's messages, the
    schema and then a batch a piece, and is converted at the end.
    """

    def __init__(self, path: Path, *, array: str | None, num_rows: int, size_bytes: int) -> None:
        self._pyarrow = _import_pyarrow(path)
        super().__init__(path, array=array, num_rows=num_rows, size_bytes=size_bytes)
        self._schema: Any = None
        if num_rows:
            with path.open("rb") as file:
                self._schema = self._pyarrow.ipc.read_schema(file)

    def append(self, answers: Answers) -> None:
        """Add rows; the first call fixes the columns and their types.

        Raises:
            InputError: other columns or types.
        """
        arrays = {name: column.to_arrow() for name, column in answers.items()}
        index = np.arange(self.num_rows, self.num_rows + count_rows(answers), dtype=np.int64)
        batch = self._pyarrow.RecordBatch.from_pydict({"index": index} | arrays)
        if self._schema is None:
            self._schema = batch.schema
            self.file.write(self._schema.serialize())
        if batch.schema != self._schema:
            raise InputError(f"{self.path} has the columns {self._schema}, and now there are {batch.schema}")
        self.file.write(batch.serialize())
        self.num_rows += len(batch)

    def finish(self, output: Path) -> None:
        """Convert the working file, give the result its final name and remove the working file."""
        self.sync()
        self.close()
        converted = self.path.with_name(self.path.name + ".parquet")
        self._convert(converted)
        converted.replace(output)
        self.path.unlink()

    def _convert(self, path: Path) -> None:
        options = {"use_dictionary": False, "compression": "none"}
        with self._pyarrow.memory_map(str(self.path)) as source, path.open("wb") as file:
            reader = self._pyarrow.ipc.open_stream(source)
            with self._pyarrow.parquet.ParquetWriter(file, reader.schema, **options) as writer:
                for batches in _group_batches(reader):
                    table = self._pyarrow.Table.from_batches(batches)
                    writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            file.flush()
            os.fsync(file.fileno())


ANSWER_FORMATS: Final[dict[str, type[JsonlWriter] | type[NpyWriter] | type[ParquetWriter]]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}
"""Kinds of output, by suffix."""


def open_writer(
    output: Path, working_file: Path, *, array: str | None, num_rows: int = 0, size_bytes: int = 0
) -> PartialWriter:
    """Open the working file of ``output``, whose suffix says the format.

    Args:
        output: The final name.
        working_file: Where rows are kept until the end.
        array: The column of numbers that an npy file holds, None where the answers have no such column.
        num_rows: Rows of the working file to continue after.
        size_bytes: Its size when it held exactly those; what lies beyond is cut off.

    Raises:
        InputError: the suffix is unknown, pyarrow is missing, or the file cannot be written.
    """
    check_output_format(output, array=array)
    writer = ANSWER_FORMATS[output.suffix.lower()]
    try:
        return writer(working_file, array=array, num_rows=num_rows, size_bytes=size_bytes)
    except OSError as error:
        raise InputError(f"cannot write {working_file}: {error.strerror}") from error


def check_output_format(output: Path, *, array: str | None) -> None:
    """Raise InputError unless the suffix of ``output`` names a format that answers with ``array`` are written in."""
    suffix = output.suffix.lower()
    if suffix not in ANSWER_FORMATS:
        allowed = ", ".join(ANSWER_FORMATS)
        raise InputError(f"{output}: answers are written as {allowed}, not {output.suffix!r}; change the output's name")
    if suffix == ".npy" and array is None:
        raise InputError(
            f"{output}: an npy file is one array of numbers, and these answers are not; write .jsonl or .parquet"
        )


def _group_batches(batches: Iterator[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        num_bytes = sum(part.nbytes for part in group)
        if num_bytes >= BYTES_PER_GROUP or sum(map(len, group)) >= ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def _encode_npy_header(num_rows: int, row_shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, *row_shape)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _read_row_shape(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return tuple(shape[1:])


def _import_pyarrow(path: Path) -> Any:
    try:
        import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: writing parquet needs pyarrow; {FILES_CURE}") from error
    return import_module("pyarrow")
