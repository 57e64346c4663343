"""The engine of one model: its queue, and the threads that run batches of what waits there.

Texts come in from an event loop and are chosen by the model threads themselves, under one lock, so that a thread that
has ended a batch starts the next without waiting for the loop. The loop is woken once a batch that completes a run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from poolgraph.errors import PoolgraphError, SessionError
from poolgraph.runtime.executor import BatchAnswer
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.serving.engine_errors import DeadlineExceeded, EngineStopped, QueueFull
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.observer import DropReason, Observer
from poolgraph.serving.pending import PendingRun, PendingText
from poolgraph.serving.scheduler import COMPANY_SECONDS, Load, NextBatch, Rules, Wait, choose_batch, make_backlog
from poolgraph.serving.speed import Speed

_LONGEST_RETRY: Final = 60

_NOT_FINITE: Final = (
    "the answer for text {index} holds NaN or infinity; run another precision, or export the checkpoint in fp32"
)


class BatchModel(Protocol):
    """What the engine needs of a model."""

    def run_batch(self, texts: Sequence[EncodedText], family: str, *, threads: int) -> BatchAnswer:
        """Run one batch."""


class Engine:
    """Runs what waits for one model in threads of its own; all methods are quick and safe from any thread.

    Args:
        name: The model's name, for the observer and for messages.
        model: Runs batches.
        rules: How batches are made.
        settings: Bounds of the queue, and when threads that died come back.
        observer: Told what happens.
    """

    def __init__(
        self, name: str, model: BatchModel, rules: Rules, settings: EngineSettings, observer: Observer
    ) -> None:
        self._name = name
        self._model = model
        self._rules = rules
        self._settings = settings
        self._observer = observer
        self._backlog = make_backlog(rules.slots)
        self._speed = Speed(rules.slots.runs)
        self._running: list[NextBatch] = []
        self._started: dict[int, float] = {}
        self._company_until = 0.0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._alive = True
        self._num_deaths = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"poolgraph-model-{number}", daemon=True)
            for number in range(rules.slots.runs)
        ]

    def start(self) -> None:
        """Start the model threads."""
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether work is taken: False once a model thread died, until it is back, while one hangs, after the end."""
        return self._alive and not self._stopping.is_set() and not self._hangs()

    def _hangs(self) -> bool:
        """Return whether a batch runs for longer than one can."""
        started = list(self._started.values())
        return bool(started) and time.monotonic() - min(started) > self._settings.stuck_seconds

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._backlog.num_texts and not self._running

    def submit(self, run: PendingRun, *, bounded: bool = True) -> None:
        """Put all texts of a run into the queue.

        Args:
            run: The run.
            bounded: Whether a full queue refuses it; the check of readiness gets in all the same.

        Raises:
            QueueFull: as many tokens wait as may.
            EngineStopped: no work is taken.
        """
        with self._changed:
            if not self.is_alive:
                raise EngineStopped(f"the engine of {self._name!r} takes no work now; try again later")
            waiting, limit = self._backlog.num_tokens, self._settings.max_queue_tokens
            is_full = bounded and waiting >= limit
            if not is_full:
                if not self.is_idle:
                    self._company_until = time.monotonic() + COMPANY_SECONDS
                self._backlog.add(run)
                self._changed.notify()
                self._tell_locked_queue()
        if is_full:
            self._observer.dropped(self._name, "full", len(run.run.encoded))
            excess = waiting + run.num_tokens - limit
            raise QueueFull(self._speed.seconds_for(excess, most=_LONGEST_RETRY), num_tokens=waiting, limit=limit)

    def drop(self, run: PendingRun, reason: DropReason, error: BaseException | None = None) -> bool:
        """Give up the texts of a run that still wait; return whether there were any.

        Args:
            run: The run.
            reason: For the observer.
            error: What the run fails with where anyone still waits for it; its texts that run are then run in vain.
        """
        with self._changed:
            num_dropped = self._backlog.drop(run)
            if num_dropped:
                run.error = error or run.error
        if num_dropped:
            _resolve([run])
            self._observer.dropped(self._name, reason, num_dropped)
            self._tell_queue()
        return num_dropped > 0

    def stop(self, error: PoolgraphError) -> None:
        """Take no more work, fail what waits with ``error`` and end the threads; batches under way end well."""
        self._stopping.set()
        with self._changed:
            failed = self._fail_waiting(error)
            self._changed.notify_all()
        _resolve(failed)
        self._tell_queue()

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, for so many seconds in all."""
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        """Serve until the end; a thread that died is back after a while."""
        while not self._stopping.is_set():
            try:
                self._serve()
            except BaseException as error:
                self._die(error)

    def _serve(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                self._run(batch)
            except BaseException as error:
                self._alive = False  # before anyone is told
                self._end(batch, _stopped(self._name, error))
                raise

    def _run(self, batch: NextBatch) -> None:
        started = time.monotonic()
        try:
            answer = self._model.run_batch([text.encoded for text in batch.texts], batch.family, threads=batch.threads)
        except PoolgraphError as error:
            self._observer.failed(self._name, "session" if isinstance(error, SessionError) else "task")
            self._end(batch, error)
            return
        ended = time.monotonic()
        self._end(batch, answer)
        self._num_deaths = 0
        self._tell_batch(batch, started, ended - started)

    def _next_batch(self) -> NextBatch | None:
        """Wait for a batch; None at the end."""
        with self._changed:
            while not self._stopping.is_set():
                chosen = choose_batch(self._backlog, self._load(), self._rules, time.monotonic())
                if not isinstance(chosen, NextBatch):
                    self._changed.wait(chosen.seconds if isinstance(chosen, Wait) else None)
                elif not self._expire(chosen.texts):
                    self._backlog.take(chosen.texts)
                    self._running.append(chosen)
                    self._started[id(chosen)] = time.monotonic()
                    self._tell_locked_queue()
                    if self._backlog.num_texts:
                        self._changed.notify()
                    return chosen
        return None

    def _load(self) -> Load:
        return Load(
            num_batches=len(self._running),
            num_long=sum(batch.long for batch in self._running),
            exclusive=any(batch.exclusive for batch in self._running),
            has_company=time.monotonic() < self._company_until,
        )

    def _expire(self, texts: Iterable[PendingText]) -> bool:
        """Give up the runs among these whose deadlines are over; return whether there were any."""
        now = time.monotonic()
        late = {text.run for text in texts if text.run.deadline is not None and text.run.deadline <= now}
        for run in late:
            self.drop(run, "deadline", DeadlineExceeded(run.urgency.timeout or 0.0))
        return bool(late)

    def _collect(self, batch: NextBatch, answer: BatchAnswer) -> list[PendingRun]:
        """Hand a batch's answers to their runs; return the runs that are complete, or failed."""
        if len(batch.texts) == 1 and answer.finite[0]:
            text = batch.texts[0]
            return [text.run] if text.run.collect([text], answer, [0]) else []
        ended: list[PendingRun] = []
        for run, places in _by_run(batch.texts).items():
            texts = [batch.texts[place] for place in places]
            sick = next((text for text, place in zip(texts, places, strict=True) if not answer.finite[place]), None)
            if sick is not None:
                self._observer.failed(self._name, "nan")
                run.error = run.error or SessionError(_NOT_FINITE.format(index=sick.index))
                ended.append(run)
            elif run.collect(texts, answer, places):
                ended.append(run)
        return ended

    def _fail(self, batch: NextBatch, error: BaseException) -> list[PendingRun]:
        runs = list(_by_run(batch.texts))
        for run in runs:
            run.error = run.error or error
        return runs

    def _end(self, batch: NextBatch, outcome: BatchAnswer | BaseException) -> None:
        """Free a batch's slot and tell those whose runs ended; what still waits of failed ones is let go."""
        with self._changed:
            if batch not in self._running:
                return
            self._running.remove(batch)
            del self._started[id(batch)]
            ended = self._collect(batch, outcome) if isinstance(outcome, BatchAnswer) else self._fail(batch, outcome)
            for run in ended:
                if run.error is not None and run.num_waiting:
                    self._backlog.drop(run)
            if self._backlog.num_texts and batch.exclusive:
                self._changed.notify_all()
        _resolve(ended)

    def _die(self, error: BaseException) -> None:
        """Fail what waits, take no work for a while, then go on."""
        with self._changed:
            self._alive = False
            failed = self._fail_waiting(_stopped(self._name, error))
            delay = self._settings.restart_delay * 2.0**self._num_deaths
            self._num_deaths += 1
        _resolve(failed)
        self._observer.failed(self._name, "engine")
        self._tell_queue()
        if self._stopping.wait(min(delay, self._settings.max_restart_delay)):
            return
        self._alive = True
        self._observer.restarted(self._name)

    def _fail_waiting(self, error: BaseException) -> list[PendingRun]:
        runs = self._backlog.runs()
        for run in runs:
            run.error = run.error or error
            self._backlog.drop(run)
        return runs

    def _tell_queue(self) -> None:
        with self._changed:  # so that what is told last is what is so
            self._tell_locked_queue()

    def _tell_locked_queue(self) -> None:
        self._observer.queue(self._name, self._backlog.num_texts, self._backlog.num_tokens)

    def _tell_batch(self, batch: NextBatch, started: float, seconds: float) -> None:
        real = sum(len(text.encoded.input_ids) for text in batch.texts)
        is_table = batch.family == "query"  # it pads nothing, and is no measure of how long a graph takes
        if not is_table:
            self._speed.add(real, seconds)
        self._observer.ran(self._name, len(batch.texts), real, real if is_table else batch.num_tokens, seconds)
        for text in batch.texts:
            self._observer.waited(self._name, max(0.0, started - text.run.arrived))


def _by_run(texts: Sequence[PendingText]) -> dict[PendingRun, list[int]]:
    """Return the places of each run's texts in a batch."""
    places: dict[PendingRun, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text.run, []).append(place)
    return places


def _resolve(runs: Sequence[PendingRun]) -> None:
    """Wake each event loop that waits for any of these runs, once."""
    for loop in {run.loop for run in runs}:
        if loop is None:
            continue
        mine = [run for run in runs if run.loop is loop]
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve_all, mine)


def _resolve_all(runs: Sequence[PendingRun]) -> None:
    for run in runs:
        run.resolve()


def _stopped(name: str, error: BaseException) -> EngineStopped:
    stopped = EngineStopped(f"a model thread of {name!r} died of {type(error).__name__}; it is started again")
    stopped.__cause__ = error
    return stopped
