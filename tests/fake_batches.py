"""A model for engines that runs no graph: each answer is made from the text's tokens; it can be slow, sick or dead."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from poolgraph.errors import SessionError
from poolgraph.runtime.executor import BatchAnswer, Slots
from poolgraph.runtime.planner import BatchLayout
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.work import Run
from poolgraph.serving.observer import NullObserver
from poolgraph.serving.pending import PendingRun
from poolgraph.serving.urgency import NO_HURRY, Urgency

SICK, FAILING, DEADLY = 666, 667, 668
"""First token ids of texts whose answers are NaN, whose batch fails, and that a model thread dies of."""


def make_text(length: int, first: int = 1) -> EncodedText:
    ids = np.full(length, 1, dtype=np.int64)
    ids[:1] = first
    return EncodedText(input_ids=ids, token_type_ids=None)


def make_run(*texts: EncodedText, family: str = "sequence") -> Run:
    return Run(family=family, encoded=list(texts))


def expected_row(text: EncodedText) -> np.ndarray:
    return np.array([text.input_ids.sum(), len(text.input_ids)], dtype=np.float32)


def make_slots(runs: int = 2, max_batch_tokens: int = 512, *, layout: BatchLayout = "uniform") -> Slots:
    return Slots(runs=runs, threads=1, lone_threads=runs, max_batch_tokens=max_batch_tokens, layout=layout)


class FakeModel:
    """Runs batches; ``gate`` holds them until it is set, ``batches`` lists the first tokens of each that ran."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.threads: list[int] = []

    def run_batch(self, texts: Sequence[EncodedText], family: str, *, threads: int) -> BatchAnswer:
        firsts = [int(text.input_ids[0]) for text in texts]
        self.batches.append(firsts)
        self.threads.append(threads)
        self.entered.release()
        assert self.gate.wait(10)
        time.sleep(self.seconds)
        if DEADLY in firsts:
            raise ZeroDivisionError("a bug")
        if FAILING in firsts:
            raise SessionError("running model.onnx failed")
        rows = np.stack([expected_row(text) for text in texts])
        rows[[first == SICK for first in firsts]] = np.nan
        finite = np.isfinite(rows).all(axis=1)
        if family == "token":
            return BatchAnswer(
                rows=[np.tile(row, (len(t.input_ids), 1)) for row, t in zip(rows, texts, strict=True)], finite=finite
            )
        return BatchAnswer(rows=rows, finite=finite)


class Recorder(NullObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def ran(self, model, num_texts, real_tokens, padded_tokens, seconds):
        self.events.append(("ran", num_texts, real_tokens, padded_tokens))

    def queue(self, model, num_texts, num_tokens):
        self.last_queue = (num_texts, num_tokens)

    def cache(self, model, hits, misses, size):
        self.events.append(("cache", hits, misses))

    def dropped(self, model, reason, num_texts):
        self.events.append(("dropped", reason, num_texts))

    def failed(self, model, kind):
        self.events.append(("failed", kind))

    def restarted(self, model):
        self.events.append(("restarted",))

    def of(self, kind: str) -> list[tuple]:
        return [event[1:] for event in self.events if event[0] == kind]


def pend(run: Run, urgency: Urgency = NO_HURRY, deadline: float | None = None) -> PendingRun:
    loop = asyncio.get_running_loop()
    return PendingRun(
        run=run,
        urgency=urgency,
        arrived=time.monotonic(),
        deadline=deadline,
        loop=loop,
        future=loop.create_future(),
    )


def in_loop(test: Callable) -> Callable:
    """Run an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")
