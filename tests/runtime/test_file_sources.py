"""Readers: every format, and errors that name the file, the place and the cure."""

from __future__ import annotations

import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poolgraph.errors import InputError
from poolgraph.runtime.file_readers import Field
from poolgraph.runtime.file_sources import FileSource

PAIR = (Field(default="query", option="--query-field"), Field(default="document", option="--document-field"))
RANKING = (PAIR[0], Field(default="documents", option="--document-field", is_list=True))


def read_texts(path, *, field=None, file_format=None):
    return (text for (text,) in FileSource(path=str(path), fields=(Field(name=field),), file_format=file_format).read())


def count_texts(path):
    return FileSource(path=str(path)).count()


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
        (
            "in.jsonl",
            '{"text": "a"}\n{"text": "b", "more": ' + "[" * 100_000,
            None,
            r"in\.jsonl, line 2: not a JSON object",
        ),
        ("in.csv", "text\na\n", "", r"line 1: no field ''; there are \['text'\]"),
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
    with pytest.raises(InputError, match=r"cannot read 'a\\x00\.txt': embedded null byte"):
        list(read_texts("a\0.txt"))


def test_an_unknown_format(tmp_path):
    with pytest.raises(InputError, match=r"one of txt, jsonl, csv, parquet \(parameter=format, value=xml\)"):
        read_texts(tmp_path / "in.txt", file_format="xml")


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet"])
def test_pairs(tmp_path, name):
    rows = [("q1", "d1"), ("q2, quoted", ""), ("q1", "d3")]
    if name == "in.parquet":
        path = write_parquet(
            tmp_path, {"document": [d for _, d in rows], "n": [1, 2, 3], "query": [q for q, _ in rows]}
        )
    elif name == "in.csv":
        path = write(tmp_path, name, "document,query\n" + "".join(f'{d},"{q}"\n' for q, d in rows))
    else:
        path = write(tmp_path, name, "".join(json.dumps({"document": d, "query": q}) + "\n" for q, d in rows))
    source = FileSource(path=str(path), fields=PAIR)
    assert list(source.read()) == rows
    assert source.count() == 3


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_rankings(tmp_path, kind):
    rows = [("q1", ["a", "", "c"]), ("q2", ["d"])]
    lines = "".join(json.dumps({"query": query, "documents": documents}) + "\n" for query, documents in rows)
    assert list(FileSource(path=str(write(tmp_path, "in.jsonl", lines)), fields=RANKING).read()) == rows
    columns = {"query": [query for query, _ in rows], "documents": pa.array([texts for _, texts in rows], kind)}
    assert list(FileSource(path=str(write_parquet(tmp_path, columns)), fields=RANKING).read()) == rows


def test_one_query_for_a_whole_file(tmp_path):
    path = write(tmp_path, "in.txt", "a\n\nc\n")
    source = FileSource(path=str(path), query="q")
    assert list(source.read()) == [("q", ["a", "", "c"])]
    assert source.count() == 1


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("in.txt", "a\n", PAIR, r"in\.txt is read as txt, which has one text a line, not query, document; give jsonl"),
        ("in.jsonl", '{"query": "q"}\n', PAIR, r"line 1: no field 'document'; there are \['query'\].*--document-field"),
        ("in.csv", "query,documents\nq,d\n", RANKING, r"in\.csv: csv has no lists, as 'documents' must be"),
        ("in.jsonl", '{"query": "q", "documents": []}\n', RANKING, r"line 1: field 'documents' is an empty list"),
        ("in.jsonl", '{"query": "q", "documents": "d"}\n', RANKING, r"'documents' is not a list of strings"),
        ("in.jsonl", '{"query": "q", "documents": ["d", 1]}\n', RANKING, r"'documents' is not a list of strings"),
    ],
)
def test_errors_of_several_fields(tmp_path, name, content, fields, message):
    with pytest.raises(InputError, match=message):
        list(FileSource(path=str(write(tmp_path, name, content)), fields=fields).read())


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (["d"], r"field 'documents' is string, not a list of strings"),
        ([[1]], r"field 'documents' is list<.*int64>, not a list of strings"),
        ([["d", None]], r"row 0: field 'documents' has a null among its strings"),
        (pa.array([[]], pa.list_(pa.string())), r"row 0: field 'documents' is an empty list"),
    ],
)
def test_parquet_errors_of_lists(tmp_path, documents, message):
    path = write_parquet(tmp_path, {"query": ["q"], "documents": documents})
    with pytest.raises(InputError, match=message):
        list(FileSource(path=str(path), fields=RANKING).read())


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
