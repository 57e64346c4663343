"""Columns of answers: each knows its JSON text row by row and its Arrow array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

_NUMBER: Final = "%.8e"
"""Nine digits and an exponent give back the same float32, also -0.0."""


class Column(Protocol):
    """One value a row of an answer."""

    def __len__(self) -> int:
        """Count the rows."""

    def to_json(self) -> Iterator[str]:
        """Yield the JSON text of each row's value."""

    def to_arrow(self) -> pyarrow.Array:
        """Return all values; their type depends on the kind of column and its width alone."""


Answers = Mapping[str, Column]
"""Columns of one length by name, in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number a row, (num_rows,), or as many numbers in every row, (num_rows, size)."""

    values: NDArray[np.float32]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.values)

    def to_json(self) -> Iterator[str]:
        """Yield a number or a list of numbers a row."""
        return _format_rows(self.values)

    def to_arrow(self) -> pyarrow.Array:
        """Return an array of float, or of lists of ``size`` floats."""
        import pyarrow

        flat = pyarrow.array(np.ascontiguousarray(self.values, dtype=np.float32).reshape(-1))
        if self.values.ndim == 1:
            return flat
        return pyarrow.FixedSizeListArray.from_arrays(flat, type=pyarrow.list_(pyarrow.float32(), self.values.shape[1]))


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list a row: arrays (num_tokens,) or (num_tokens, size), of any number of tokens."""

    values: Sequence[NDArray[np.float32]]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.values)

    def to_json(self) -> Iterator[str]:
        """Yield a list of numbers, or of lists of numbers, a row."""
        for rows in self.values:
            yield f"[{', '.join(_format_rows(rows))}]"

    def to_arrow(self) -> pyarrow.Array:
        """Return an array of lists of floats, or of lists of lists of floats."""
        import pyarrow

        tokens = np.concatenate(self.values).astype(np.float32, copy=False)
        items = pyarrow.array(tokens.reshape(-1))
        if tokens.ndim == 2:
            items = pyarrow.ListArray.from_arrays(_offsets([tokens.shape[1]] * len(tokens)), items)
        return pyarrow.ListArray.from_arrays(_offsets([len(rows) for rows in self.values]), items)


@dataclass(frozen=True, slots=True)
class Texts:
    """A text a row, or None."""

    values: Sequence[str | None]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.values)

    def to_json(self) -> Iterator[str]:
        """Yield a string or null a row."""
        return (msgspec.json.encode(text).decode() for text in self.values)

    def to_arrow(self) -> pyarrow.Array:
        """Return an array of string."""
        import pyarrow

        return pyarrow.array(list(self.values), type=pyarrow.string())


@dataclass(frozen=True, slots=True)
class Records:
    """A list of objects a row; ``kinds`` has the Arrow type of each of their keys."""

    values: Sequence[Sequence[Mapping[str, Any]]]
    kinds: Mapping[str, str]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.values)

    def to_json(self) -> Iterator[str]:
        """Yield a list of objects a row."""
        return (msgspec.json.encode(records).decode() for records in self.values)

    def to_arrow(self) -> pyarrow.Array:
        """Return an array of lists of structs."""
        import pyarrow

        fields = [(name, pyarrow.type_for_alias(kind)) for name, kind in self.kinds.items()]
        return pyarrow.array([list(row) for row in self.values], type=pyarrow.list_(pyarrow.struct(fields)))


def encode_jsonl(answers: Answers, first_index: int) -> Iterator[bytes]:
    """Yield a line a row: its index, then each column."""
    line = ", ".join(['{{"index": {}', *(f"{msgspec.json.encode(name).decode()}: {{}}" for name in answers)]) + "}}\n"
    for index, values in enumerate(zip(*(column.to_json() for column in answers.values()), strict=True), first_index):
        yield line.format(index, *values).encode()


def count_rows(answers: Answers) -> int:
    """Return the number of rows, the same in every column."""
    return len(next(iter(answers.values())))


def _format_rows(values: NDArray[np.float32]) -> Iterator[str]:
    if values.ndim == 1:
        return (_NUMBER % value for value in values.tolist())
    numbers = ", ".join([_NUMBER] * values.shape[1])
    return (f"[{numbers % tuple(row)}]" for row in values.tolist())


def _offsets(lengths: Sequence[int]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
