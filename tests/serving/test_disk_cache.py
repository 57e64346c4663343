import logging
import os
import sqlite3
import threading

import numpy as np
import pytest

from poolgraph.serving import disk_cache
from poolgraph.serving.disk_cache import DiskCache

ROWS = [
    (b"a", np.array([1.5, -0.0, 1e-40], dtype=np.float32)),
    (b"b", np.arange(6, dtype=np.float32).reshape(2, 3)),
]


@pytest.fixture
def opened():
    caches = []

    def make(path, capacity=1 << 20):
        caches.append(DiskCache(path, capacity))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def call(cache, method, *args):
    return cache.executor.submit(method, *args).result()


def test_answers_come_back_bit_for_bit(tmp_path, opened):
    first = opened(tmp_path / "new" / "cache.sqlite")
    call(first, first.keep, ROWS)
    call(first, first.keep, ROWS)
    first.close()
    second = DiskCache(tmp_path / "new" / "cache.sqlite", 1 << 20)
    found = call(second, second.find, [b"b", b"a", b"c"])
    second.close()
    assert found.keys() == {b"a", b"b"}
    for key, row in ROWS:
        assert (found[key].shape, found[key].tobytes()) == (row.shape, row.tobytes())


def test_nothing_is_pickled(tmp_path, opened):
    cache = opened(tmp_path / "cache.sqlite")
    call(cache, cache.keep, ROWS)
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        rows = connection.execute("SELECT key, dtype, shape, data FROM answers ORDER BY key").fetchall()
    connection.close()
    assert rows[1] == (b"b", "<f4", "2,3", ROWS[1][1].tobytes())


def test_the_oldest_go_when_the_file_holds_too_much(tmp_path, opened):
    cache = opened(tmp_path / "cache.sqlite", 4000)
    for number in range(64):
        call(cache, cache.keep, [(bytes([number]), np.zeros(50, dtype=np.float32))])
    found = call(cache, cache.find, [bytes([number]) for number in range(64)])
    assert set(found) == {bytes([number]) for number in range(44, 64)}


def corrupt(path):
    path.write_bytes(b"no database at all, but more than a hundred bytes of something else " * 9)


def truncate(path):
    DiskCache(path, 1 << 20).close()
    path.write_bytes(path.read_bytes()[:5000] + os.urandom(3000))


def rename_column(path):
    DiskCache(path, 1 << 20).close()
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE answers RENAME COLUMN data TO other")
    connection.close()


def make_directory(path):
    path.mkdir()


@pytest.mark.parametrize("damage", [corrupt, truncate, rename_column, make_directory])
def test_a_file_that_is_no_cache_switches_the_level_off(tmp_path, opened, caplog, damage):
    path = tmp_path / "cache.sqlite"
    damage(path)
    with caplog.at_level(logging.WARNING):
        cache = opened(path)
        call(cache, cache.keep, ROWS)
        assert call(cache, cache.find, [b"a"]) == {}
        call(cache, cache.keep, ROWS)
    assert not cache.is_on
    (record,) = caplog.records
    assert "cache.sqlite cannot be used and is off" in record.getMessage()


def test_a_locked_file_switches_the_level_off(tmp_path, opened, caplog, monkeypatch):
    monkeypatch.setattr("poolgraph.serving.disk_cache._LOCK_SECONDS", 0.05)
    cache = opened(tmp_path / "cache.sqlite")
    other = sqlite3.connect(tmp_path / "cache.sqlite")
    other.execute("BEGIN IMMEDIATE")
    call(cache, cache.keep, ROWS)
    other.rollback()
    other.close()
    assert not cache.is_on
    assert "locked" in caplog.text


def test_a_full_disk_switches_the_level_off(tmp_path, opened, caplog):
    cache = opened(tmp_path / "cache.sqlite")
    call(cache, cache._connection.execute, "PRAGMA max_page_count = 8")
    call(cache, cache.keep, [(b"x", np.zeros(100_000, dtype=np.float32))])
    assert not cache.is_on
    assert "full" in caplog.text
    assert call(cache, cache.find, [b"x"]) == {}


@pytest.mark.parametrize("column", [("dtype", "'<f8'"), ("shape", "'5'"), ("shape", "'x'"), ("data", "x'0000c07f'")])
def test_rows_that_are_not_what_was_written_are_not_believed(tmp_path, opened, column):
    cache = opened(tmp_path / "cache.sqlite")
    call(cache, cache.keep, [(b"a", np.zeros(1, dtype=np.float32))])
    call(cache, cache._connection.execute, "UPDATE answers SET {} = {}".format(*column))
    assert call(cache, cache.find, [b"a"]) == {}
    assert not cache.is_on


def test_a_slow_disk_does_not_fill_the_memory(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(disk_cache, "_MOST_WAITING", sum(row.nbytes for _, row in ROWS) * 3)
    cache, gate = opened(tmp_path / "cache.sqlite"), threading.Event()
    held = cache.executor.submit(gate.wait, 10)
    assert [cache.offer(ROWS) for _ in range(5)] == [True, True, True, False, False]
    gate.set()
    assert held.result()
    assert set(call(cache, cache.find, [b"a", b"b"])) == {b"a", b"b"}
    assert cache.offer(ROWS)
    cache.close()
    assert not cache.offer(ROWS)
