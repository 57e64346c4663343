"""The support table: what ``support.json`` holds, and how it is printed; ``make support`` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import msgspec

COLUMNS = ("task", "architecture", "example checkpoint", "verified", "largest difference")


class SupportEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row, verified by a test on a tiny checkpoint of the architecture.

    Attributes:
        task: embed, classify, score, reward, colbert (late interaction) or tokens (token classification).
        architecture: As config.json names it.
        kind: What sets it apart from other rows of its architecture; empty where there is none.
        example: A published checkpoint.
        oracle: Whose answers are right.
        verified: What was compared.
        difference: The largest one, a share of the largest answer.
    """

    task: str
    architecture: str
    kind: str
    example: str
    oracle: str
    verified: tuple[str, ...]
    difference: float

    @property
    def name(self) -> str:
        """Its identity."""
        return " ".join(filter(None, (self.task, self.architecture, self.kind)))

    @property
    def cells(self) -> tuple[str, ...]:
        """What is printed, by COLUMNS."""
        title = f"{self.architecture} ({self.kind})" if self.kind else self.architecture
        difference = f"{self.difference:.1e} of {self.oracle}"
        return self.task, title, self.example, "; ".join(self.verified), difference


def read_support() -> tuple[SupportEntry, ...]:
    """Read the table that ships with the package; torch is not needed."""
    content = resources.files(__package__).joinpath("support.json").read_bytes()
    return msgspec.json.decode(content, type=tuple[SupportEntry, ...])


def render_text(entries: Sequence[SupportEntry]) -> str:
    """Render rows in columns."""
    rows = [COLUMNS, *(entry.cells for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def render_markdown(entries: Sequence[SupportEntry]) -> str:
    """Render rows as the README's table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(entry.cells for entry in entries)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
