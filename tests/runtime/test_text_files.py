"""Readers: every format, and errors that name the file, the place and the cure."""

from __future__ import annotations

import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poolgraph.errors import InputError
from poolgraph.runtime.text_files import count_texts, read_texts


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(folder, columns, name="in.parquet", **options):
    pq.write_table(pa.table(columns), folder / name, **options)
    return folder / name


def set_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\n\n b \n", ["a", "", " b "]),
        ("a\n\n", ["a", ""]),
        ("\n", [""]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\ufeffa\nb", ["a", "b"]),
        ("tab\there\x0bvertical\x85next\u2028line\n", ["tab\there\x0bvertical\x85next\u2028line"]),
        ("日本語\n🦊\n", ["日本語", "🦊"]),
    ],
)
def test_lines_are_texts(tmp_path, content, texts):
    path = write(tmp_path, "in.txt", content)
    assert list(read_texts(path)) == texts
    assert count_texts(path) == len(texts)


def test_jsonl(tmp_path):
    path = write(tmp_path, "in.jsonl", '{"text": "a", "n": [1, {}]}\n\n{"n": 2, "text": "b\\n\\u00e9"}\n')
    assert list(read_texts(path)) == ["a", "b\né"]
    path = write(tmp_path, "in.ndjson", '{"title": "t", "text": "a"}')
    assert list(read_texts(path, field="title")) == ["t"]


def test_csv(tmp_path):
    path = write(tmp_path, "in.csv", 'id,text\n1,plain\n2,"two\nlines, ""quoted"""\n3,\n\n4,last')
    assert list(read_texts(path)) == ["plain", 'two\nlines, "quoted"', "", "last"]
    assert list(read_texts(path, field="id")) == ["1", "2", "3", "4"]


def test_csv_takes_a_long_document(tmp_path):
    document = "word " * 50_000
    assert list(read_texts(write(tmp_path, "in.csv", f"text\n{document}\n"))) == [document]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    texts = [f"text {i % 7}" for i in range(3000)]
    path = write_parquet(tmp_path, {"id": list(range(3000)), "body": pa.array(texts).cast(kind)}, row_group_size=500)
    assert list(read_texts(path, field="body")) == texts


def test_standard_input(monkeypatch):
    set_stdin(monkeypatch, b"a\nb\n")
    assert list(read_texts("-")) == ["a", "b"]
    set_stdin(monkeypatch, b'{"text": "c"}\n')
    assert list(read_texts("-", file_format="jsonl")) == ["c"]
    assert count_texts("-") is None


def test_the_format_wins_over_the_suffix(tmp_path):
    assert list(read_texts(write(tmp_path, "in.log", "a\n"), file_format="txt")) == ["a"]
    assert list(read_texts(write(tmp_path, "IN.TXT", "a\n"))) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("in.txt", "", None, r"in\.txt holds no text"),
        ("in.csv", "", None, r"in\.csv holds no text"),
        ("in.csv", "text\n", None, r"in\.csv holds no text"),
        ("in.jsonl", "\n\n", None, r"in\.jsonl holds no text"),
        ("in.txt", b"ok\nna\xefve\n", None, r"in\.txt, line 2: not UTF-8 \(byte 0xef at position 2\).*iconv"),
        ("in.txt", "a\n", "text", r"in\.txt is read as txt, which has no fields \(parameter=field, value=text\)"),
        ("in.jsonl", '{"text": "a"}\n{"text": ', None, r"in\.jsonl, line 2: not a JSON object"),
        ("in.jsonl", '["a"]\n', None, r"in\.jsonl, line 1: not a JSON object"),
        ("in.jsonl", '{"body": "a", "id": 1}\n', None, r"line 1: no field 'text'; there are \['body', 'id'\].*--field"),
        ("in.jsonl", '{"text": 3}\n', None, r"line 1: field 'text' is not a string"),
        ("in.jsonl", '{"text": null}\n', None, r"line 1: field 'text' is not a string"),
        ("in.jsonl", '{"text": "\\ud800"}\n', None, r"line 1: "),
        ("in.csv", "id,body\n1,a\n", None, r"in\.csv, line 1: no field 'text'; there are \['id', 'body'\]"),
        ("in.csv", "text,text\na,b\n", None, r"2 columns named 'text'"),
        ("in.csv", "id,text\n1,a\n2\n", None, r"in\.csv, line 3: 1 columns where the header has 2"),
        ("in.csv", 'id,text\n1,"open\n', None, r"in\.csv, line \d: not valid CSV"),
        ("in.parquet", b"PAR1 but not really", None, r"in\.parquet: not a readable parquet file"),
        ("in.docx", "a", None, r"the suffix '\.docx' is none of \.txt, \.jsonl, .*--format.*txt, jsonl, csv, parquet"),
    ],
)
def test_errors_name_the_place(tmp_path, name, content, field, message):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=message):
        list(read_texts(path, field=field))


def test_texts_before_a_bad_line_are_yielded(tmp_path):
    texts = read_texts(write(tmp_path, "in.jsonl", '{"text": "a"}\nnot json\n'))
    assert next(texts) == "a"
    with pytest.raises(InputError, match="line 2"):
        next(texts)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, r"no field 'text'; there are \['body'\]"),
        ({"text": [1, 2]}, r"field 'text' is int64, not a string"),
        ({"text": ["a", None]}, r"row 1: field 'text' is null"),
        ({"text": pa.array([], pa.string())}, r"holds no text"),
    ],
)
def test_parquet_errors(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        list(read_texts(write_parquet(tmp_path, columns)))


def test_parquet_needs_a_file(monkeypatch):
    set_stdin(monkeypatch, b"")
    with pytest.raises(InputError, match="cannot be read from standard input"):
        list(read_texts("-", file_format="parquet"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'pip install "poolgraph\[files\]"'):
        list(read_texts(write(tmp_path, "in.parquet", b"PAR1")))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*absent\.txt: No such file"):
        list(read_texts(tmp_path / "absent.txt"))
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        list(read_texts(tmp_path, file_format="txt"))


def test_an_unknown_format(tmp_path):
    with pytest.raises(InputError, match=r"one of txt, jsonl, csv, parquet \(parameter=format, value=xml\)"):
        read_texts(tmp_path / "in.txt", file_format="xml")


def test_reading_is_lazy(tmp_path):
    """A pipe that never ends is read as far as it is asked for, so nothing waits for the whole."""
    lines = iter([b"a\n", b"b\n"])

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            line = next(lines, None)
            assert line is not None, "read past what was asked for"
            buffer[: len(line)] = line
            return len(line)

    texts = read_texts("-")
    stdin = io.TextIOWrapper(io.BufferedReader(Endless(), buffer_size=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        assert next(texts) == "a"
