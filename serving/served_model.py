"""A model as a server has it: requests in from an event loop, answers out, everything between in the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from poolgraph.errors import PoolgraphError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.requests import RequestRunner
from poolgraph.runtime.work import Answers, Finished, Run, Work, advance
from poolgraph.serving.cached_runs import CachedRuns
from poolgraph.serving.engine import Engine
from poolgraph.serving.engine_errors import AnswerTooLarge, DeadlineExceeded, EngineStopped, NotReady
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.observer import Observer
from poolgraph.serving.pending import PendingRun
from poolgraph.serving.probe import Probe
from poolgraph.serving.urgency import NO_HURRY, Urgency

T = TypeVar("T")

_PROBE_PRIORITY: Final = -(1 << 31) - 1
"""Before the most urgent request that there can be, so that no client keeps readiness waiting."""

_POLL_SECONDS: Final = 0.01
_JOIN_SECONDS: Final = 1.0
"""What a batch under way gets to end once the grace is over."""


@dataclass(slots=True, kw_only=True, eq=False)
class ServedModel:
    """One model that a server answers with; every method belongs into an event loop.

    Attributes:
        names: The names it goes by, the first of which is shown.
        runner: Makes a ``Work`` of a request.
        engine: Runs the texts.
        settings: The engine's.
        observer: Told what happens.
        probe: What readiness is checked with.
        cache: Remembers raw answers; None for no cache.
        created: When it was loaded, in Unix seconds.
        is_warm: Whether the first shapes have run.
    """

    names: tuple[str, ...]
    runner: RequestRunner
    engine: Engine
    settings: EngineSettings
    observer: Observer
    probe: Probe
    cache: CachedRuns | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    is_warm: bool = False
    _closing: bool = False
    _num_requests: int = 0
    _tokenizers: ThreadPoolExecutor | None = None
    _check: asyncio.Task[None] | None = None

    @property
    def manifest(self) -> Manifest:
        """The manifest with the caller's overrides."""
        return self.runner.manifest

    @property
    def is_alive(self) -> bool:
        """Whether the model threads run and work is taken."""
        return self.engine.is_alive and not self._closing

    async def answer(self, work: Callable[[], Work[T]], urgency: Urgency = NO_HURRY, *, num_chars: int) -> T:
        """Do a request.

        Cancelling the task that awaits lets go of the texts that still wait.

        Args:
            work: Makes the request; called once.
            urgency: Its priority and its deadline.
            num_chars: Roughly how much there is to tokenize: characters, or token ids. Little is tokenized and finished
                in the event loop, more in a thread.

        Raises:
            QueueFull: there is no room in the queue.
            DeadlineExceeded: its time was over before its texts had run.
            EngineStopped: the engine is closing, or died with the request.
            SessionError: the model failed on one of its texts, NaN included.
            PoolgraphError: what the request itself raises.
        """
        if self._closing:
            raise EngineStopped(f"{self.names[0]!r} is closing and takes no new work; ask another server")
        self._num_requests += 1
        try:
            return await self._drive(work(), urgency, inline=num_chars <= self.settings.inline_chars)
        finally:
            self._num_requests -= 1

    async def _drive(self, work: Work[T], urgency: Urgency, *, inline: bool) -> T:
        deadline = None if urgency.timeout is None else time.monotonic() + urgency.timeout
        started = time.perf_counter()
        step = advance(work, None) if inline else await self._advance(work, None)
        while isinstance(step, Run):
            self._tell_tokenized(step, time.perf_counter() - started)
            self._check_size(step)
            answers = await self._run(step, urgency, deadline)
            started = time.perf_counter()
            step = advance(work, answers) if inline else await self._advance(work, answers)
        return step.result

    def _check_size(self, run: Run) -> None:
        """Refuse a run whose raw answers would not fit; those of sequences are small beside their texts.

        Raises:
            AnswerTooLarge: a row a token, of too many tokens.
        """
        if run.family != "token":
            return
        pooler = self.manifest.pooler
        width = pooler.token_embedding_size or pooler.embedding_size
        num_bytes = 4 * width * sum(len(text.input_ids) for text in run.encoded)
        if num_bytes > self.settings.max_answer_bytes:
            raise AnswerTooLarge(num_bytes, self.settings.max_answer_bytes)

    async def _advance(self, work: Work[T], answers: Answers | None) -> Run | Finished[T]:
        if self._tokenizers is None:
            self._tokenizers = ThreadPoolExecutor(
                self.settings.num_tokenizer_threads, thread_name_prefix="poolgraph-tokenize"
            )
        return await asyncio.get_running_loop().run_in_executor(self._tokenizers, advance, work, answers)

    def _tell_tokenized(self, run: Run, seconds: float) -> None:
        num_tokens = sum(len(text.input_ids) for text in run.encoded)
        self.observer.tokenized(self.names[0], len(run.encoded), num_tokens, seconds)

    def _run(self, run: Run, urgency: Urgency, deadline: float | None) -> Awaitable[Answers]:
        if self.cache is None:
            return self._queue(run, urgency, deadline)
        return self.cache.answer(run, lambda rest: self._queue(rest, urgency, deadline))

    async def _queue(self, run: Run, urgency: Urgency, deadline: float | None, *, bounded: bool = True) -> Answers:
        """Let a run's texts wait and run; whatever ends this early lets go of those that still wait."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers] = loop.create_future()
        pending = PendingRun(
            run=run, urgency=urgency, arrived=time.monotonic(), deadline=deadline, loop=loop, future=future
        )
        self.engine.submit(pending, bounded=bounded)
        timer = None if deadline is None else loop.call_later(deadline - pending.arrived, self._expire, pending)
        try:
            return await future
        except asyncio.CancelledError:
            self.engine.drop(pending, "disconnected")
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, pending: PendingRun) -> None:
        self.engine.drop(pending, "deadline", DeadlineExceeded(pending.urgency.timeout or 0.0))

    async def check_ready(self) -> None:
        """Run the stored probe, before all that waits, and compare its answer.

        Whoever asks while a check is under way gets that one's outcome: the probe goes before all requests, and however
        many ask for it, it must not keep them waiting.

        Raises:
            NotReady: it is not what it should be, or the shapes of the start have not run yet.
            PoolgraphError: it did not run.
        """
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._run_probe())
            self._check.add_done_callback(_look_at)
        await asyncio.shield(self._check)

    async def _run_probe(self) -> None:
        try:
            if not self.is_warm:
                raise NotReady(f"{self.names[0]!r} is still warming up")
            urgency = Urgency(priority=_PROBE_PRIORITY, timeout=self.settings.ready_timeout)
            run = Run(family=self.probe.family, encoded=[self.probe.text])
            deadline = time.monotonic() + self.settings.ready_timeout
            answers = await self._queue(run, urgency, deadline, bounded=False)
            if fault := self.probe.find_fault(np.asarray(answers[0])):
                raise NotReady(f"{self.names[0]!r} is not well: {fault}")
        except PoolgraphError:
            self.observer.failed(self.names[0], "ready")
            raise

    async def close(self, grace: float) -> None:
        """Refuse new requests, finish those under way within ``grace`` seconds, fail the others and free the model."""
        self._closing = True
        end = time.monotonic() + grace
        while self._num_requests and time.monotonic() < end:
            await asyncio.sleep(_POLL_SECONDS)
        self.engine.stop(EngineStopped(f"{self.names[0]!r} was closed before the request's turn; send it again"))
        await asyncio.to_thread(self.engine.join, max(_JOIN_SECONDS, end - time.monotonic()))
        if self._tokenizers is not None:
            self._tokenizers.shutdown(wait=False, cancel_futures=True)
        self.runner.model.close()


def _look_at(check: asyncio.Task[None]) -> None:
    """Look at the outcome of a check that everyone who asked for it may have left."""
    if not check.cancelled():
        check.exception()
