"""The support table that ships: the rows that tests verify, and what the README shows of it."""

from __future__ import annotations

import support_table
from support_rows import SUPPORT_ROWS

from poolgraph.export.support import SupportEntry, read_support, render_markdown, render_text

ENTRY = SupportEntry(
    task="embed",
    architecture="BertModel",
    kind="packed",
    example="acme/bert",
    oracle="numpy",
    verified=("graphs", "texts"),
    difference=1.2e-6,
)


def test_the_file_has_the_rows_of_the_tests_in_their_order() -> None:
    said = [(row.task, row.architecture, row.kind, row.example, row.oracle) for row in SUPPORT_ROWS]
    assert [(it.task, it.architecture, it.kind, it.example, it.oracle) for it in read_support()] == said
    assert len({row.name for row in SUPPORT_ROWS}) == len(SUPPORT_ROWS)


def test_encoders_are_verified_packed_and_scores_of_pairs() -> None:
    for row, entry in zip(SUPPORT_ROWS, read_support(), strict=True):
        assert ("packed" in entry.verified) == row.packed, row.name
        assert ("pairs" in entry.verified) == (row.task == "score"), row.name


def test_the_readme_shows_the_file() -> None:
    readme = support_table.README.read_text(encoding="utf-8")
    assert support_table.replace_table(readme, render_markdown(read_support())) == readme


def test_rendered() -> None:
    text = render_text([ENTRY])
    assert text.splitlines() == [
        "task   architecture        example checkpoint  verified       largest difference",
        "embed  BertModel (packed)  acme/bert           graphs; texts  1.2e-06 of numpy",
    ]
    assert render_markdown([ENTRY]).splitlines()[1:] == [
        "| --- | --- | --- | --- | --- |",
        "| embed | BertModel (packed) | acme/bert | graphs; texts | 1.2e-06 of numpy |",
    ]
