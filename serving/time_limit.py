"""A limit of time for tasks that all have as much: one timer for whichever of them began first."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, TypeAlias

_Task: TypeAlias = asyncio.Task[Any]


class TimeLimit:
    """Cancels tasks that take longer than ``seconds``.

    Whichever began first is late first, so that one timer does for all; one a task would cost each of them more than
    all else that is done here.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: dict[_Task, float] = {}
        self._late: set[_Task] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> _Task:
        """Begin to time the task that calls this, and return it."""
        task = asyncio.current_task()
        assert task is not None, "ASGI applications run in tasks"
        loop = task.get_loop()
        if loop is not self._loop:  # another one than before, which is closed
            self._loop, self._timer = loop, None
            self._ends.clear()
            self._late.clear()
        self._ends[task] = monotonic() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        return task

    def end(self, task: _Task) -> bool:
        """Time a task no more, and take the cancellation of one that was late back.

        Returns:
            Whether it was late and nobody else has cancelled it.
        """
        is_late = task in self._late
        if is_late:
            self._late.discard(task)
        else:
            self._ends.pop(task, None)
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return is_late and not task.uncancel()

    def _look(self) -> None:
        """Cancel what is late, and look again when the next one is."""
        self._timer = None
        now = monotonic()
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > now:
                assert self._loop is not None
                self._timer = self._loop.call_later(end - now, self._look)
                return
            del self._ends[task]
            self._late.add(task)
            task.cancel()
