"""The cache's second level: raw answers in a SQLite file, as bytes beside their type and shape, never pickled.

It is a help, never a condition: whatever goes wrong with the file (no room, a lock that is held, damage), the level is
switched off with one warning and requests go on without it.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from poolgraph.serving.answer_cache import Key, Row

_LOG: Final = logging.getLogger("poolgraph.serving")

_LOCK_SECONDS: Final = 1.0
"""How long another process's lock is waited for."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, dtype TEXT NOT NULL, shape TEXT NOT NULL, data BLOB NOT NULL
)
"""

_DTYPE: Final = "<f4"

_MOST_KEYS: Final = 500
"""Keys looked up by one statement; SQLite takes 999 variables in old versions."""

_MOST_WAITING: Final = 1 << 26
"""Bytes of answers that wait to be written: a disk that is slower than the model must not fill the memory."""

_CHECK_EVERY: Final = 64
"""Writes after which the file's size is looked at."""


class DiskCache:
    """Raw answers in a file; every method but ``offer`` and ``close`` belongs into ``executor``, which has one thread.

    Args:
        path: The file; made where there is none.
        capacity: Bytes of answers up to which the oldest are kept.

    Attributes:
        executor: The thread that reads and writes the file.
        is_on: Whether the level works; never on again once it was switched off.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="poolgraph-cache")
        self.is_on = True
        self._path = path
        self._capacity = capacity
        self._connection: sqlite3.Connection | None = None
        self._num_writes = 0
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._closed = False
        self.executor.submit(self._open).result()

    def find(self, keys: Sequence[Key]) -> dict[Key, Row]:
        """Return the answers that there are."""
        if self._connection is None:
            return {}
        found: dict[Key, Row] = {}
        try:
            for start in range(0, len(keys), _MOST_KEYS):
                part = keys[start : start + _MOST_KEYS]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(
                    f"SELECT key, dtype, shape, data FROM answers WHERE key IN ({marks})",  # noqa: S608 - marks alone
                    part,
                )
                found.update((key, _decode(*row)) for key, *row in rows)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._switch_off(error)
            return {}
        return found

    def offer(self, answers: Sequence[tuple[Key, Row]]) -> bool:
        """Let answers be written soon; return False where too many wait already, and these are passed over."""
        size = sum(row.nbytes for _, row in answers)
        with self._lock:
            if not self.is_on or self._waiting_bytes + size > _MOST_WAITING:
                return False
            self._waiting_bytes += size
            self.executor.submit(self._keep_offered, answers, size)
        return True

    def _keep_offered(self, answers: Sequence[tuple[Key, Row]], size: int) -> None:
        try:
            self.keep(answers)
        finally:
            with self._lock:
                self._waiting_bytes -= size

    def keep(self, answers: Sequence[tuple[Key, Row]]) -> None:
        """Write answers; those of a key that is there already change nothing."""
        if self._connection is None:
            return
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO answers (key, dtype, shape, data) VALUES (?, ?, ?, ?)",
                    [
                        (key, _DTYPE, ",".join(map(str, row.shape)), row.astype(_DTYPE).tobytes())
                        for key, row in answers
                    ],
                )
                self._num_writes += 1
                if self._num_writes % _CHECK_EVERY == 0:
                    self._shrink(self._connection)
        except (sqlite3.Error, OSError) as error:
            self._switch_off(error)

    def close(self) -> None:
        """Write what is still to be written and let go of the file; a second time nothing happens."""
        if self._closed:
            return
        with self._lock:  # so that nothing is offered to an executor that is shut down
            self._closed, self.is_on = True, False
        self.executor.submit(self._disconnect).result()
        self.executor.shutdown()

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            with self._connection:
                self._connection.execute(_SCHEMA)
            self._connection.execute("SELECT key, dtype, shape, data FROM answers LIMIT 1").fetchall()
        except (sqlite3.Error, OSError) as error:
            self._switch_off(error)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Give up the answers written first while the file holds too much."""
        (size,) = connection.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM answers").fetchone()
        if size <= self._capacity:
            return
        (count,) = connection.execute("SELECT COUNT(*) FROM answers").fetchone()
        surplus = math.ceil(count * (size - self._capacity) / size)
        connection.execute(
            "DELETE FROM answers WHERE number IN (SELECT number FROM answers ORDER BY number LIMIT ?)", (surplus,)
        )

    def _switch_off(self, error: Exception) -> None:
        self.is_on = False
        self._disconnect()
        _LOG.warning("the cache on disk %s cannot be used and is off: %s", self._path.name, error)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()
        except sqlite3.Error as error:
            _LOG.debug("closing the cache on disk: %s", error)


def _decode(dtype: str, shape: str, data: bytes) -> Row:
    """Return an answer as it was written.

    Raises:
        ValueError: it is not what ``keep`` writes.
    """
    if dtype != _DTYPE:
        raise ValueError(f"an answer of type {dtype!r}; this version writes {_DTYPE!r}")
    row = np.frombuffer(data, dtype=_DTYPE).reshape([int(size) for size in shape.split(",")])
    if not np.isfinite(row).all():
        raise ValueError("an answer that is not finite")
    return row.astype(np.float32)
