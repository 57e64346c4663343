"""How fast an engine runs, for the time that a refused client is told to wait."""

from __future__ import annotations

import math
from typing import Final

_MEMORY: Final = 0.9
"""Share of the old estimate that remains with each batch."""


class Speed:
    """Tokens a second, averaged over the last batches; ``runs`` of them go beside each other."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Count a batch."""
        self._tokens = _MEMORY * self._tokens + num_tokens
        self._seconds = _MEMORY * self._seconds + seconds

    def seconds_for(self, num_tokens: int, *, most: int) -> int:
        """Return in how many whole seconds so many tokens will have run, from 1 to ``most``; 1 where none has yet."""
        if self._seconds <= 0 or self._tokens <= 0:
            return 1
        rate = self._runs * self._tokens / self._seconds
        return max(1, min(most, math.ceil(num_tokens / rate)))
