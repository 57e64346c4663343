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
        self._ends: dict[_Task, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> _Task:
        """Begin to time the task that calls this, and return it."""
        task = asyncio.current_task()
        assert task is not None, "ASGI applications run in tasks"
        self._ends[task] = monotonic() + self._seconds
        if self._timer is None:
            self._start_timer(self._seconds)
        return task

    def end(self, task: _Task) -> bool:
        """Time a task no more; return whether it was late, and so cancelled here."""
        was_late = self._ends.pop(task, None) is None
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return was_late

    def _start_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Cancel what is late, and look again when the next one is."""
        self._timer = None
        now = monotonic()
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > now:
                self._start_timer(end - now)
                return
            del self._ends[task]
            task.cancel()
