"""The calibration texts of int8 quantization: languages, lengths and form."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from poolgraph import export_model
from poolgraph.errors import InputError

FILE = Path(__file__).parents[2] / "export" / "calibration_texts.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def counts(rows: list[dict[str, str]], minilm_checkpoint: Path) -> list[int]:
    """The number of tokens of every text, without special tokens."""
    tokenizer = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch([row["text"] for row in rows], add_special_tokens=False)
    return [len(encoding.ids) for encoding in encoded]


def test_twelve_languages_of_distinct_texts(rows: list[dict[str, str]]) -> None:
    languages = Counter(row["language"] for row in rows)
    assert len(rows) >= 256
    assert set(languages) == {"en", "de", "fr", "es", "pt", "it", "pl", "ru", "zh", "ja", "ar", "hi"}
    assert min(languages.values()) >= 20
    assert len({row["text"] for row in rows}) == len(rows)


def test_rows_hold_a_language_and_a_text_without_outer_whitespace(rows: list[dict[str, str]]) -> None:
    assert [row for row in rows if list(row) != ["language", "text"] or row["text"] != row["text"].strip()] == []


def test_lengths_go_from_8_to_512_tokens(rows: list[dict[str, str]], counts: list[int]) -> None:
    assert [row["text"] for row, count in zip(rows, counts, strict=True) if not 8 <= count <= 512] == []
    assert any(row["language"] == "en" and count > 400 for row, count in zip(rows, counts, strict=True))


def test_texts_without_int8_are_refused(minilm_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--calibration own\.txt is for int8 and fp16: add --precision"):
        export_model(minilm_checkpoint, tmp_path / "out", calibration="own.txt")
    with pytest.raises(InputError, match=r"cannot read own\.txt"):
        export_model(minilm_checkpoint, tmp_path / "out", calibration="own.txt", precisions=("int8",))
    assert list(tmp_path.iterdir()) == []
