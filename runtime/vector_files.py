"""Vectors in files: npy, JSON lines and Parquet, written piece by piece and complete under their name or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.text_files import FILES_CURE

ROWS_PER_GROUP: Final = 16_384
"""Rows of one Parquet row group, and of one piece when a finished file is converted."""


class VectorWriter(Protocol):
    """A place that takes rows of vectors in order."""

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows of shape ``(num_rows, embedding_size)``."""

    def close(self) -> None:
        """Release the file; what was written stays."""


class PartialWriter(VectorWriter, Protocol):
    """A writer into a working file that survives interruptions."""

    def sync(self) -> int:
        """Bring everything appended onto the disk; return the working file's size in bytes."""

    def finish(self, output: Path) -> None:
        """Complete the working file and give it its final name."""


class JsonlStream:
    """Vectors as JSON lines on a binary stream, such as standard output."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._num_rows = 0

    def append(self, rows: NDArray[np.float32]) -> None:
        """Write one line a row and flush."""
        self._stream.write(encode_jsonl(rows, self._num_rows))
        self._stream.flush()
        self._num_rows += len(rows)

    def close(self) -> None:
        """Leave the stream open: it belongs to the caller."""


class _WorkingFile:
    """A file cut back to its last known good size, then appended to."""

    def __init__(self, path: Path, *, num_rows: int, size_bytes: int) -> None:
        self.path = path
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


class JsonlWriter(_WorkingFile):
    """Vectors as lines ``{"index": i, "embedding": [...]}``."""

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows of shape ``(num_rows, embedding_size)``."""
        self.file.write(encode_jsonl(rows, self.num_rows))
        self.num_rows += len(rows)

    def finish(self, output: Path) -> None:
        """Give the file its final name."""
        self.sync()
        self.close()
        self.path.replace(output)


class NpyWriter(_WorkingFile):
    """Vectors as one float32 array ``(num_texts, embedding_size)`` in C order, as ``numpy.save`` writes it.

    The header has the same size whatever the number of rows, so it is written first for none and again at the end.
    """

    def __init__(self, path: Path, *, num_rows: int, size_bytes: int) -> None:
        super().__init__(path, num_rows=num_rows, size_bytes=size_bytes)
        self._embedding_size: int | None = None
        if num_rows:
            self._embedding_size = _read_npy_width(path)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows of shape ``(num_rows, embedding_size)``; the first call fixes the width."""
        if self._embedding_size is None:
            self._embedding_size = rows.shape[1]
            self.file.write(_encode_npy_header(0, rows.shape[1]))
        if rows.shape[1] != self._embedding_size:
            raise InputError(f"rows of {rows.shape[1]} values after rows of {self._embedding_size} in {self.path}")
        self.file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.num_rows += len(rows)

    def complete(self) -> None:
        """Write the header that counts every row, and close."""
        assert self._embedding_size is not None
        self.file.seek(0)
        self.file.write(_encode_npy_header(self.num_rows, self._embedding_size))
        self.sync()
        self.close()

    def finish(self, output: Path) -> None:
        """Complete the header and give the file its final name."""
        self.complete()
        self.path.replace(output)


class ParquetWriter(NpyWriter):
    """Vectors as columns ``index`` (int64) and ``embedding`` (fixed-size list of float).

    A Parquet file cannot be appended to after an interruption, so the working file is npy and is converted at the end.
    """

    def __init__(self, path: Path, *, num_rows: int, size_bytes: int) -> None:
        _import_pyarrow(path)
        super().__init__(path, num_rows=num_rows, size_bytes=size_bytes)

    def finish(self, output: Path) -> None:
        """Convert the working file, give the result its final name and remove the working file."""
        self.complete()
        converted = self.path.with_name(self.path.name + ".parquet")
        _save_parquet(np.load(self.path, mmap_mode="r"), converted)
        converted.replace(output)
        self.path.unlink()


VECTOR_FORMATS: Final[dict[str, type[JsonlWriter] | type[NpyWriter]]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}
"""Kinds of output, by suffix."""


def open_writer(output: Path, working_file: Path, *, num_rows: int = 0, size_bytes: int = 0) -> PartialWriter:
    """Open the working file of ``output``, whose suffix says the format.

    Args:
        output: The final name.
        working_file: Where rows are kept until the end.
        num_rows: Rows of the working file to continue after.
        size_bytes: Its size when it held exactly those; what lies beyond is cut off.

    Raises:
        InputError: the suffix is unknown, pyarrow is missing, or the file cannot be written.
    """
    check_output_format(output)
    try:
        return VECTOR_FORMATS[output.suffix.lower()](working_file, num_rows=num_rows, size_bytes=size_bytes)
    except OSError as error:
        raise InputError(f"cannot write {working_file}: {error.strerror}") from error


def check_output_format(output: Path) -> None:
    """Raise InputError unless the suffix of ``output`` names a format that vectors are written in."""
    if output.suffix.lower() not in VECTOR_FORMATS:
        allowed = ", ".join(VECTOR_FORMATS)
        raise InputError(f"{output}: vectors are written as {allowed}, not {output.suffix!r}; change the output's name")


def encode_jsonl(rows: NDArray[np.float32], first_index: int) -> bytes:
    """Encode rows as JSON lines; nine digits and an exponent give back the same bits, also of -0.0."""
    values = ", ".join(["%.8e"] * rows.shape[1])
    lines = (
        f'{{"index": {index}, "embedding": [{values % tuple(row)}]}}\n'
        for index, row in enumerate(rows.tolist(), start=first_index)
    )
    return "".join(lines).encode()


def _encode_npy_header(num_rows: int, embedding_size: int) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, embedding_size)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _read_npy_width(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return int(shape[1])


def _import_pyarrow(path: Path) -> ModuleType:
    try:
        import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: writing parquet needs pyarrow; {FILES_CURE}") from error
    return import_module("pyarrow")


def _save_parquet(vectors: NDArray[np.float32], path: Path) -> None:
    pyarrow = _import_pyarrow(path)
    embedding = pyarrow.list_(pyarrow.float32(), vectors.shape[1])
    schema = pyarrow.schema([("index", pyarrow.int64()), ("embedding", embedding)])
    with path.open("wb") as file:
        with pyarrow.parquet.ParquetWriter(file, schema, use_dictionary=False, compression="none") as writer:
            for start, rows in _cut_groups(vectors):
                index = pyarrow.array(np.arange(start, start + len(rows), dtype=np.int64))
                values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), type=embedding)
                writer.write_table(pyarrow.Table.from_arrays([index, values], schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _cut_groups(vectors: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(vectors), ROWS_PER_GROUP):
        yield start, np.ascontiguousarray(vectors[start : start + ROWS_PER_GROUP])
