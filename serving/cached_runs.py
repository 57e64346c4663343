"""A run with a cache in front of it: only texts whose answers nobody remembers are run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from poolgraph.runtime.work import Answers, Run
from poolgraph.serving.answer_cache import AnswerCache, Key, Row, make_key
from poolgraph.serving.disk_cache import DiskCache
from poolgraph.serving.observer import Observer

Execute: TypeAlias = Callable[[Run], Awaitable[Answers]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRuns:
    """The caches as one model uses them.

    Attributes:
        name: The model's, for the observer.
        salt: Names its artifact and variant in every key.
        memory: The first level.
        disk: The second level, None for none.
        observer: Told of hits and misses.
    """

    name: str
    salt: bytes
    memory: AnswerCache
    disk: DiskCache | None
    observer: Observer

    async def answer(self, run: Run, execute: Execute) -> Answers:
        """Return raw answers of a run, from the caches where they have them, else from ``execute``."""
        keys = [make_key(self.salt, run.family, text) for text in run.encoded]
        rows = self.memory.find(keys)
        if self._disk_works() and any(row is None for row in rows):
            await self._find_on_disk(keys, rows)
        missing = [place for place, row in enumerate(rows) if row is None]
        self.observer.cache(self.name, len(rows) - len(missing), len(missing), self.memory.size)
        if missing:
            fresh = await execute(Run(family=run.family, encoded=[run.encoded[place] for place in missing]))
            self._keep([keys[place] for place in missing], fresh)
            if len(missing) == len(rows):
                return fresh
            for place, row in zip(missing, fresh, strict=True):
                rows[place] = row
        found = [row for row in rows if row is not None]
        return np.stack(found) if run.family != "token" else found

    def _disk_works(self) -> bool:
        return self.disk is not None and self.disk.is_on

    async def _find_on_disk(self, keys: Sequence[Key], rows: list[Row | None]) -> None:
        """Fill the gaps in ``rows`` with what the file has, and remember it."""
        assert self.disk is not None
        wanted = [key for key, row in zip(keys, rows, strict=True) if row is None]
        found = await asyncio.get_running_loop().run_in_executor(self.disk.executor, self.disk.find, wanted)
        for place, key in enumerate(keys):
            if rows[place] is None and key in found:
                rows[place] = found[key]
                self.memory.keep(key, found[key])

    def _keep(self, keys: Sequence[Key], fresh: Answers) -> None:
        for key, row in zip(keys, fresh, strict=True):
            self.memory.keep(key, row)
        if self._disk_works():
            assert self.disk is not None
            copies = [(key, np.array(row, dtype=np.float32)) for key, row in zip(keys, fresh, strict=True)]
            self.disk.offer(copies)
