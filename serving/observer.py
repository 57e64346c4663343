"""Who is told what happens in an engine: metrics, logs, tests."""

from __future__ import annotations

from typing import Literal, Protocol

DropReason = Literal["deadline", "disconnected", "full"]


class Observer(Protocol):
    """Told of everything worth counting; each method is quick, safe from several threads, and raises nothing.

    ``model`` is the first of a model's names; times are in seconds.
    """

    def tokenized(self, model: str, num_texts: int, num_tokens: int, seconds: float) -> None:
        """Texts became tokens; ``seconds`` includes reading the request's parameters."""

    def waited(self, model: str, seconds: float) -> None:
        """A text left the queue, after so long in it."""

    def ran(self, model: str, num_texts: int, real_tokens: int, padded_tokens: int, seconds: float) -> None:
        """A batch ran; ``padded_tokens`` counts padding and texts together."""

    def queue(self, model: str, num_texts: int, num_tokens: int) -> None:
        """The queue now holds so much."""

    def cache(self, model: str, hits: int, misses: int, size: int) -> None:
        """Answers were looked up; ``size`` is the memory in bytes that the cache now holds, of all models."""

    def dropped(self, model: str, reason: DropReason, num_texts: int) -> None:
        """Texts left the queue, or never came in, without having run."""

    def failed(self, model: str, kind: str) -> None:
        """Something failed: ``nan``, ``session``, ``task``, ``engine`` (a model thread died) or ``ready``."""

    def restarted(self, model: str) -> None:
        """A model thread that had died works again."""

    def encoded(self, model: str, seconds: float) -> None:
        """Answers were encoded for the client."""


class NullObserver(Observer):
    """Listens to nothing."""
