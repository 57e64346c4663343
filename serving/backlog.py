"""The texts that wait for one model, in the order of their turns; no clock, no threads.

A text's turn is a virtual time: that of its arrival, plus the tokens of its own request in front of it beyond a
quantum. Virtual time runs by the tokens that are served divided by the requests that wait, as in weighted fair
queueing (Demers, Keshav and Shenker 1989). So requests of up to a quantum are served in the order of their arrival, a
large one takes turns with those that come after it, and neither kind can keep the other waiting for ever. The share of
a large request grows with its size, up to ``_MOST_WEIGHT`` small ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from poolgraph.serving.pending import PendingRun, PendingText
from poolgraph.tasks import RunFamily

QUANTUM_TOKENS: Final = 2048
"""Tokens of a request that are served in the order of arrival."""

_MOST_WEIGHT: Final = 16.0

_MOST_GONE: Final = 64
"""Texts that are gone and still held, beyond as many as wait."""


@dataclass(slots=True, eq=False)
class Group:
    """The waiting texts of one graph and length, or of one graph and a range of lengths.

    Attributes:
        family: The graph, or the table of queries.
        length: Tokens of each text, or the most that one may have.
        count: Texts that wait.
    """

    family: RunFamily
    length: int
    count: int = 0
    _heap: list[PendingText] = field(default_factory=list)

    def push(self, text: PendingText) -> None:
        """Add a text."""
        self.count += 1
        heapq.heappush(self._heap, text)

    def head(self) -> PendingText:
        """Return the text whose turn is first; there is one."""
        while not self._heap[0].waits:
            heapq.heappop(self._heap)
        return self._heap[0]

    def in_order(self) -> Iterator[PendingText]:
        """Yield the texts in the order of their turns; they stay. The first few of many are had for little."""
        ahead = [((0, 0.0, 0), 0)] if self._heap else []
        while ahead:
            place = heapq.heappop(ahead)[1]
            if self._heap[place].waits:
                yield self._heap[place]
            for child in range(2 * place + 1, min(2 * place + 3, len(self._heap))):
                heapq.heappush(ahead, (self._heap[child].order, child))

    def first(self, number: int) -> list[PendingText]:
        """Return the texts whose turns are first, in order; they stay."""
        self.head()  # lets go of those in front that are gone
        return list(islice(self.in_order(), number))

    def remove(self) -> None:
        """Count a text out that waits no more."""
        self.count -= 1
        if len(self._heap) > 2 * self.count + _MOST_GONE:
            self._heap = [text for text in self._heap if text.waits]
            heapq.heapify(self._heap)


class Backlog:
    """The waiting texts.

    Args:
        mixed: Texts of up to so many tokens share a group, whatever their lengths; longer ones are grouped by length.

    Attributes:
        num_texts: How many wait.
        num_tokens: Their tokens, 1 of a text without any.
        passed_over: Batches in a row that did without the text whose turn was first.
    """

    def __init__(self, mixed: int = 0) -> None:
        self._mixed = mixed
        self.num_texts = 0
        self.num_tokens = 0
        self.passed_over = 0
        self._groups: dict[tuple[RunFamily, int], Group] = {}
        self._runs: dict[PendingRun, None] = {}
        self._weight = 0.0
        self._clock = 0.0
        self._number = 0

    def add(self, run: PendingRun) -> None:
        """Take in all texts of a run."""
        encoded = run.run.encoded
        if not self._runs:
            self._clock = self._weight = 0.0
        run.weight = min(_MOST_WEIGHT, max(1.0, run.num_tokens / QUANTUM_TOKENS))
        run.num_waiting = len(encoded)
        priority, before = run.urgency.priority, 0
        for index, text in enumerate(encoded):
            turn = self._clock + max(0, before - QUANTUM_TOKENS) / run.weight
            self._push(PendingText(run=run, index=index, encoded=text, order=(priority, turn, self._number)))
            before += len(text.input_ids)
        if encoded:
            self._runs[run] = None
            self._weight += run.weight

    def _push(self, text: PendingText) -> None:
        key = self._key(text)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
        group.push(text)
        text.run.texts.append(text)
        self._number += 1
        self.num_texts += 1
        self.num_tokens += _measure(text)

    def _key(self, text: PendingText) -> tuple[RunFamily, int]:
        return text.run.run.family, max(self._mixed, _measure(text))

    def groups(self) -> Iterable[Group]:
        """Return the groups, none of them empty."""
        return self._groups.values()

    def neighbours(self, group: Group) -> Iterator[Group]:
        """Yield a group and the others of its graph, those of near lengths first."""
        same = [other for other in self._groups.values() if other.family == group.family]
        yield from sorted(same, key=lambda other: abs(other.length - group.length))

    def take(self, texts: Sequence[PendingText]) -> None:
        """Let texts go that run now, and let virtual time pass for them."""
        served = sum(len(text.encoded.input_ids) for text in texts)
        self._clock += served / max(1.0, self._weight)
        for text in texts:
            self._remove(text)

    def drop(self, run: PendingRun) -> int:
        """Let the texts of a run go that still wait; return how many there were."""
        waiting = [text for text in run.texts if text.waits]
        for text in waiting:
            self._remove(text)
        return len(waiting)

    def runs(self) -> list[PendingRun]:
        """Return the runs of which texts wait."""
        return list(self._runs)

    def _remove(self, text: PendingText) -> None:
        key = self._key(text)
        text.waits = False
        self.num_texts -= 1
        self.num_tokens -= _measure(text)
        group = self._groups[key]
        group.remove()
        if not group.count:
            del self._groups[key]
        text.run.num_waiting -= 1
        if not text.run.num_waiting:
            del self._runs[text.run]
            self._weight -= text.run.weight
            text.run.texts.clear()  # a ring of references would leave each request to the garbage collector


def _measure(text: PendingText) -> int:
    """Return a text's tokens, 1 for a query without any: no number of them would fill the queue."""
    return max(1, len(text.encoded.input_ids))
