"""Calibration texts: those that ship, written for this project, or the user's file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from poolgraph.runtime.file_sources import FileSource

EDGE_TEXTS = ("", "a", "?", ".", "1", "yes yes yes yes yes", "again " * 300)
"""Texts that say next to nothing: their activations are unlike those of others, so they are observed and judged."""


class _Line(msgspec.Struct, frozen=True):
    language: str
    text: str


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
        content = resources.files(__package__).joinpath("calibration_texts.jsonl").read_text(encoding="utf-8")
        lines = [msgspec.json.decode(line, type=_Line) for line in content.splitlines()]
        return CalibrationTexts(f"{len(lines)} texts that ship with poolgraph", tuple(line.text for line in lines))
    texts = tuple(str(text) for (text,) in FileSource(path=str(path)).read())
    return CalibrationTexts(f"{len(texts)} texts of {Path(path).name}", texts)
