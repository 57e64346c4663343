"""Writers: the files load elsewhere with the same bits, and survive being cut and continued."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poolgraph.errors import InputError
from poolgraph.runtime import file_writers
from poolgraph.runtime.file_columns import Numbers, Ragged, Records, Texts, encode_jsonl
from poolgraph.runtime.file_writers import JsonlStream, check_output_format
from poolgraph.runtime.file_writers import open_writer as open_any_writer

SUFFIXES = [".npy", ".jsonl", ".parquet"]


def open_writer(output, working_file, *, array="embedding", **state):
    return open_any_writer(output, working_file, array=array, **state)


def vectors(rows):
    return {"embedding": Numbers(rows)}


def make_rows(num_rows=37, seed=0):
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-38, 38, (num_rows, 5))
    return (random.standard_normal((num_rows, 5)) * scale).astype(np.float32)


def load(path):
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(len(lines)))
        return np.array([line["embedding"] for line in lines], dtype=np.float32)
    table = pq.read_table(path)
    assert table.schema == pa.schema([("index", pa.int64()), ("embedding", pa.list_(pa.float32(), 5))])
    assert table["index"].to_pylist() == list(range(len(table)))
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 5)


def write(output, pieces):
    writer = open_writer(output, output.with_suffix(".partial"))
    for piece in pieces:
        writer.append(vectors(piece))
    writer.finish(output)
    writer.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_bits_come_back(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(file_writers, "ROWS_PER_GROUP", 16)
    rows, output = make_rows(), tmp_path / f"out{suffix}"
    write(output, [rows[:1], rows[1:20], rows[20:]])
    loaded = load(output)
    assert loaded.dtype == np.float32
    assert loaded.tobytes() == rows.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_npy_is_what_numpy_writes(tmp_path):
    rows = make_rows(123_456)
    write(tmp_path / "out.npy", [rows])
    np.save(tmp_path / "numpy.npy", rows)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_lies_behind_the_recorded_size_is_cut_off(tmp_path, suffix):
    rows, whole, cut = make_rows(), tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    write(whole, [rows])
    partial = tmp_path / "partial"
    writer = open_writer(cut, partial)
    writer.append(vectors(rows[:20]))
    size_bytes = writer.sync()
    assert partial.stat().st_size == size_bytes
    writer.append(vectors(rows[20:30]))
    writer.close()
    with partial.open("ab") as file:
        file.write(b"half a ro")
    writer = open_writer(cut, partial, num_rows=20, size_bytes=size_bytes)
    writer.append(vectors(rows[20:]))
    writer.finish(cut)
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_has_the_final_name_before_the_end(tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    writer = open_writer(output, tmp_path / "partial")
    writer.append(vectors(make_rows()))
    writer.sync()
    assert not output.exists()
    writer.finish(output)
    assert output.exists()


def test_fortran_order_and_float64_are_written_as_float32_rows(tmp_path):
    rows = make_rows()
    write(tmp_path / "out.npy", [np.asfortranarray(rows)])
    loaded = np.load(tmp_path / "out.npy")
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, rows)


def test_another_width_is_refused(tmp_path):
    writer = open_writer(tmp_path / "out.npy", tmp_path / "partial")
    writer.append(vectors(make_rows()))
    with pytest.raises(InputError, match=r"rows of shape \(3,\) after rows of \(5,\)"):
        writer.append(vectors(make_rows()[:, :3]))
    writer.close()


def test_every_float32_survives_json():
    bits = np.random.default_rng(1).integers(0, 2**32, 20_000, dtype=np.uint32)
    edges = np.array([0, 1, 0x80000000, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x3DCCCCCD], dtype=np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    values = values[np.isfinite(values)].reshape(1, -1)
    line = json.loads(next(encode_jsonl(vectors(values), 7)))
    assert line["index"] == 7
    assert np.array(line["embedding"], dtype=np.float32).tobytes() == values.tobytes()


def test_a_stream_of_json_lines_counts_on():
    stream = io.BytesIO()
    writer = JsonlStream(stream)
    writer.append(vectors(make_rows(2)))
    writer.append(vectors(make_rows(1)))
    writer.close()
    assert [json.loads(line)["index"] for line in stream.getvalue().splitlines()] == [0, 1, 2]


def test_an_unknown_suffix_lists_the_known(tmp_path):
    with pytest.raises(InputError, match=r"written as \.npy, \.jsonl, \.parquet, not '\.csv'"):
        open_writer(tmp_path / "out.csv", tmp_path / "partial")


def test_parquet_without_pyarrow_fails_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r'pip install "poolgraph\[files\]"'):
        open_writer(tmp_path / "out.parquet", tmp_path / "partial")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*: No such file"):
        open_writer(tmp_path / "absent" / "out.npy", tmp_path / "absent" / "partial")


def read_back(output):
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text().splitlines()]
    return pq.read_table(output).to_pylist()


ANSWERS = {
    "label": Texts(["a", None, 'ü"\n']),
    "score": Numbers(np.array([0.1, -0.0, 3e-38], dtype=np.float32)),
    "tokens": Ragged([make_rows(2), make_rows(0), make_rows(3)]),
    "steps": Ragged([np.zeros(0, np.float32), np.ones(2, np.float32), np.ones(1, np.float32)]),
    "results": Records(
        [[{"index": 1, "score": 0.5, "text": "x"}, {"index": 0, "score": 0.25, "text": ""}], [], []],
        {"index": "int64", "score": "float32", "text": "string"},
    ),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_kind_of_column_comes_back(tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    writer = open_writer(output, tmp_path / "partial", array=None)
    writer.append(ANSWERS)
    size_bytes = writer.sync()
    writer.append(ANSWERS)
    writer.close()
    writer = open_writer(output, tmp_path / "partial", array=None, num_rows=3, size_bytes=size_bytes)
    writer.append(ANSWERS)
    writer.finish(output)
    rows = read_back(output)
    assert [row["index"] for row in rows] == list(range(6))
    assert list(rows[0]) == ["index", *ANSWERS]
    for row, again in zip(rows[:3], rows[3:], strict=True):
        assert row | {"index": 0} == again | {"index": 0}
    assert [row["label"] for row in rows[:3]] == ANSWERS["label"].values
    assert [row["results"] for row in rows[:3]] == ANSWERS["results"].values
    for name in ("score", "tokens", "steps"):
        for row, expected in zip(rows, ANSWERS[name].values, strict=False):
            found = np.array(row[name], dtype=np.float32)
            assert found.tobytes() == expected.tobytes()


def test_an_npy_file_of_one_number_a_row(tmp_path):
    output = tmp_path / "out.npy"
    writer = open_writer(output, tmp_path / "partial", array="score")
    writer.append(ANSWERS)
    size_bytes = writer.sync()
    writer.close()
    writer = open_writer(output, tmp_path / "partial", array="score", num_rows=3, size_bytes=size_bytes)
    writer.append(ANSWERS)
    writer.finish(output)
    np.save(tmp_path / "numpy.npy", np.concatenate([ANSWERS["score"].values] * 2))
    assert output.read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_an_npy_file_needs_one_array(tmp_path):
    with pytest.raises(InputError, match=r"an npy file is one array of numbers.*write \.jsonl or \.parquet"):
        check_output_format(tmp_path / "out.npy", array=None)
    check_output_format(tmp_path / "out.jsonl", array=None)


def test_other_columns_are_refused(tmp_path):
    writer = open_writer(tmp_path / "out.parquet", tmp_path / "partial")
    writer.append(vectors(make_rows()))
    with pytest.raises(InputError, match=r"has the columns"):
        writer.append({"score": ANSWERS["score"]})
    writer.close()
