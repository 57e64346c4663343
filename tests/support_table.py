"""The support table's file and the README's copy of it, written from what the row tests measured (``make support``)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
from filelock import FileLock

from poolgraph.export.support import SupportEntry, read_support, render_markdown

REPOSITORY = Path(__file__).parents[1]
JSON_FILE, README = REPOSITORY / "export" / "support.json", REPOSITORY / "README.md"
BEGIN, END = "<!-- support table: make support -->", "<!-- end of the support table -->"
MEASURED = "POOLGRAPH_SUPPORT_MEASURED"
"""The variable that names a file for what is measured."""

MARGIN = 10.0
"""How far another machine's float32 answers may lie above the recorded difference."""


def check_recorded(name: str, differences: Mapping[str, float]) -> None:
    """Check that support.json has what a row's test compared; while ``make support`` runs, note it instead."""
    file = os.environ.get(MEASURED)
    if file:
        note(Path(file), name, differences)
        return
    (recorded,) = [entry for entry in read_support() if entry.name == name]
    assert recorded.verified == tuple(differences)
    assert max(differences.values()) <= recorded.difference * MARGIN, (differences, recorded.difference)


def note(file: Path, name: str, differences: Mapping[str, float]) -> None:
    """Note a row's differences in a file that several workers write."""
    with FileLock(f"{file}.lock"):
        rows = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**rows, name: dict(differences)}))


def replace_table(readme: str, table: str) -> str:
    """Put a table between the README's two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def write(file: Path) -> None:
    """Write support.json in the table's order, and the README."""
    from support_rows import SUPPORT_ROWS

    rows = json.loads(file.read_text())
    missing = [row.name for row in SUPPORT_ROWS if row.name not in rows]
    if missing:
        raise SystemExit(f"not verified: {', '.join(missing)}")
    entries = [
        SupportEntry(
            task=row.task,
            architecture=row.architecture,
            kind=row.kind,
            example=row.example,
            oracle=row.oracle,
            verified=tuple(rows[row.name]),
            difference=float(f"{max(rows[row.name].values()):.1e}"),
        )
        for row in SUPPORT_ROWS
    ]
    lines = ",\n".join(msgspec.json.encode(entry).decode() for entry in entries)
    JSON_FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(replace_table(readme, render_markdown(read_support())), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
