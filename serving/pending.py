"""A request's run in the queue, and the texts that it consists of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.executor import BatchAnswer
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.work import Answers, Run
from poolgraph.serving.urgency import NO_HURRY, Urgency


@dataclass(slots=True, kw_only=True, eq=False)
class PendingText:
    """One text that waits, or runs.

    Attributes:
        run: The run that it belongs to.
        index: Its place there.
        encoded: Its tokens.
        order: What texts are sorted by, the lower the sooner: the request's priority, the queue's virtual time at
            which the text's turn is, and a count of the queue's texts for those whose turns are the same.
        waits: Whether it is still in the queue.
    """

    run: PendingRun
    index: int
    encoded: EncodedText
    order: tuple[int, float, int]
    waits: bool = True

    def __lt__(self, other: PendingText) -> bool:
        return self.order < other.order


@dataclass(slots=True, kw_only=True, eq=False)
class PendingRun:
    """A run whose texts wait or run, in as many batches as they happen to share with others.

    Attributes:
        run: What is asked.
        urgency: The request's.
        arrived: When it came in, on the engine's clock, in seconds.
        deadline: When texts that still wait are given up, on that clock; None for never.
        loop: The event loop that waits for the answers; None where nobody does.
        future: Where the answers are expected.
        texts: Its texts in the queue, in their order; none once all have left it.
        num_waiting: Texts that still wait.
        weight: Its share of the queue beside others' of weight 1.
        answers: What is there so far.
        error: What it failed with; nothing of it runs any more.
    """

    run: Run
    urgency: Urgency = NO_HURRY
    arrived: float
    deadline: float | None = None
    loop: asyncio.AbstractEventLoop | None = None
    future: asyncio.Future[Answers] | None = None
    texts: list[PendingText] = field(default_factory=list)
    num_waiting: int = 0
    weight: float = 1.0
    answers: Answers | None = None
    error: BaseException | None = None
    _num_left: int = -1

    @property
    def num_tokens(self) -> int:
        """Tokens of all of its texts."""
        return sum(len(text.input_ids) for text in self.run.encoded)

    def collect(self, texts: list[PendingText], answer: BatchAnswer, places: list[int]) -> bool:
        """Put answers of one batch into place; return whether the run is complete with them.

        Args:
            texts: Its texts in the batch.
            answer: The batch's.
            places: Their rows there.
        """
        if self._num_left < 0:
            self._num_left = len(self.run.encoded)
        if self.run.family != "token":
            self._collect_rows(texts, np.asarray(answer.rows), places)
        else:
            if self.answers is None:
                self.answers = [np.empty((0, 0), dtype=np.float32)] * len(self.run.encoded)
            for text, place in zip(texts, places, strict=True):
                self.answers[text.index] = answer.rows[place]
        self._num_left -= len(texts)
        return self._num_left == 0

    def _collect_rows(self, texts: list[PendingText], rows: NDArray[np.float32], places: list[int]) -> None:
        if len(self.run.encoded) == 1:
            self.answers = rows[places[0] : places[0] + 1]
            return
        if self.answers is None:
            self.answers = np.empty((len(self.run.encoded), rows.shape[1]), dtype=np.float32)
        for text, place in zip(texts, places, strict=True):
            self.answers[text.index] = rows[place]

    def resolve(self) -> None:
        """Hand answers or error to whoever waits; called in the event loop."""
        if self.future is None or self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            assert self.answers is not None
            self.future.set_result(self.answers)
