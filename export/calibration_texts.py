"""Calibration texts: those that ship, written for this project, or the user's file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from poolgraph.runtime.file_sources import FileSource

EDGE_TEXTS = ("", "a", "?", ".", "1", "yes yes yes yes yes", "again " * 300)
"""Texts that say next to nothing: their activations are unlike those of others, so they are observed and judged."""


@dataclass(frozen=True, slots=True)
class CalibrationTexts:
    """Texts, and what the manifest calls them."""

    name: str
    texts: tuple[str, ...]


def read_calibration(path: str | Path | None) -> CalibrationTexts:
    """Read the shipped texts, or those of a txt, jsonl, csv or parquet file with a field ``text``.

    Raises:
        InputError: the file cannot be read, or has no text.
    """
    if path is None:
        with resources.as_file(resources.files(__package__).joinpath("calibration_texts.jsonl")) as file:
            texts = _read(file)
        return CalibrationTexts(f"{len(texts)} texts that ship with poolgraph", texts)
    texts = _read(Path(path))
    return CalibrationTexts(f"{len(texts)} texts of {Path(path).name}", texts)


def _read(path: Path) -> tuple[str, ...]:
    return tuple(str(text) for (text,) in FileSource(path=str(path)).read())
