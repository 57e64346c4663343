"""Runs the graphs of one variant over tokenized texts: plan, run side by side, answers in input order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import SessionError
from poolgraph.graphs.manifest import Graph
from poolgraph.runtime.bound_inputs import output_width
from poolgraph.runtime.buckets import Padding, PaddingCounter
from poolgraph.runtime.pipeline import CallCounter, run_side_by_side
from poolgraph.runtime.planner import Batch, BatchLayout
from poolgraph.runtime.runner import Runner
from poolgraph.runtime.session import Session, SessionPool, run_graph
from poolgraph.runtime.threads import choose_parallelism, count_runs
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.tuning import Tuning

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of texts that each finished batch adds, never twice at a time."""

Collect: TypeAlias = Callable[[Batch, NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlan:
    """The batches of a call, how many run at once and with how many threads each."""

    batches: tuple[Batch, ...]
    runs: int
    threads: int


def plan_work(
    lengths: Sequence[int], runner: Runner, tuning: Tuning, *, cores: int, callers: int = 1, threads: int | None = None
) -> WorkPlan:
    """Plan a call.

    Batches too few to run beside each other have all cores in turn, and then they are not cut to be more of them.

    Args:
        lengths: Tokens of each text.
        runner: Cuts them into batches.
        tuning: What was measured, or the defaults.
        cores: Cores of this process.
        callers: Calls under way, this one included.
        threads: Threads of a run as fixed by the user.
    """
    most = count_runs(cores, callers=callers, pinned_threads=threads, tuned_threads=tuning.threads)
    lone = choose_parallelism(1, cores, callers=callers, pinned_threads=threads, tuned_threads=tuning.threads)
    cut = partial(
        runner.plan, lengths, max_batch_tokens=tuning.max_batch_tokens, lone_fills=lone.threads * callers >= cores
    )
    batches = cut(runs=most)
    chosen = choose_parallelism(
        len(batches), cores, callers=callers, pinned_threads=threads, tuned_threads=tuning.threads
    )
    batches = cut(runs=1) if chosen.runs == 1 < min(most, len(batches)) else batches
    return WorkPlan(batches=batches, runs=chosen.runs, threads=chosen.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """How a scheduler of single batches uses the machine.

    Attributes:
        runs: Batches that run beside each other.
        threads: Threads of each of them.
        lone_threads: Threads of a batch with nothing beside it.
        max_batch_tokens: Token budget of a batch.
        layout: Which texts may share a batch: those of one length, of neighbouring ones, or any.
        in_turn: Whether runs take turns on one device, the next one being staged meanwhile.
    """

    runs: int
    threads: int
    lone_threads: int
    max_batch_tokens: int
    layout: BatchLayout
    in_turn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """Raw answers of one batch.

    Attributes:
        rows: (num_texts, size), or of the token graph one (num_tokens, size) a text.
        finite: (num_texts,) whether a text's answer has neither NaN nor infinity.
    """

    rows: NDArray[np.float32] | list[NDArray[np.float32]]
    finite: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """Runs tokenized texts through a variant's graphs; safe to use from several threads.

    Attributes:
        sessions: The variant's sessions.
        runner: Plans and feeds batches in the variant's layout.
        cores: Cores of this process.
        threads: Threads of a run as fixed by the user, None to choose by the number of batches.
        tuning: Token budget of a batch, and the threads that were measured to be best.
    """

    sessions: SessionPool
    runner: Runner
    cores: int
    threads: int | None
    tuning: Tuning
    _calls: CallCounter = field(default_factory=CallCounter, init=False)
    _counter: PaddingCounter = field(default_factory=PaddingCounter, init=False)

    @property
    def padding(self) -> Padding:
        """Tokens of texts and of padding that were computed so far."""
        return self._counter.total

    def close(self) -> None:
        """Let go of nothing: the sessions are the pool's."""

    def run_sequence(
        self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None, first_index: int = 0
    ) -> NDArray[np.float32]:
        """Run the sequence graph; return its raw answers (num_texts, size) in input order.

        Args:
            encoded: Tokenized texts.
            on_progress: Told of finished texts.
            first_index: Index of the first text in the caller's own list, for messages.
        """
        answers = np.empty((len(encoded), output_width(self.sessions.graph("sequence"))), dtype=np.float32)

        def collect(batch: Batch, answer: NDArray[np.float32]) -> None:
            check_finite(answer, batch.indices, first_index)
            answers[list(batch.indices)] = answer

        self._run(encoded, "sequence", collect, on_progress)
        return answers

    def run_token(
        self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None, first_index: int = 0
    ) -> list[NDArray[np.float32]]:
        """Run the token graph; return its raw answers, one (num_tokens, size) a text, in input order.

        Arguments as of ``run_sequence``.
        """
        answers: list[NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(encoded)

        def collect(batch: Batch, answer: NDArray[np.float32]) -> None:
            texts = [encoded[index] for index in batch.indices]
            for index, rows in zip(batch.indices, self.runner.split_tokens(answer, texts), strict=True):
                check_finite(rows.reshape(1, -1), [index], first_index)
                answers[index] = rows

        self._run(encoded, "token", collect, on_progress)
        return answers

    def plan_slots(self) -> Slots:
        """Return what a scheduler of single batches may use of the machine."""
        most = count_runs(self.cores, pinned_threads=self.threads, tuned_threads=self.tuning.threads)
        many = choose_parallelism(
            self.cores, self.cores, pinned_threads=self.threads, tuned_threads=self.tuning.threads
        )
        lone = choose_parallelism(1, self.cores, pinned_threads=self.threads, tuned_threads=self.tuning.threads)
        return Slots(
            runs=most,
            threads=many.threads,
            lone_threads=lone.threads,
            max_batch_tokens=self.tuning.max_batch_tokens,
            layout=self.runner.layout,
        )

    def run_batch(self, texts: Sequence[EncodedText], family: str, *, threads: int) -> BatchAnswer:
        """Run texts as the one batch that a scheduler made of them; answers that are not finite are marked, not raised.

        Args:
            texts: All of one length in the uniform layout.
            family: Whose graph runs.
            threads: Threads of the run.

        Raises:
            SessionError: ONNX Runtime failed.
        """
        session = self.sessions.session(family, threads)
        answer = self._run_batch(session, self.sessions.graph(family), texts)
        if family == "sequence":
            return BatchAnswer(rows=answer, finite=np.asarray(np.isfinite(answer).all(axis=1)))
        rows = self.runner.split_tokens(answer, texts)
        return BatchAnswer(rows=rows, finite=np.array([bool(np.isfinite(one).all()) for one in rows]))

    def _run(self, encoded: Sequence[EncodedText], family: str, collect: Collect, on_progress: Progress | None) -> None:
        graph = self.sessions.graph(family)
        report = serialize_progress(on_progress)
        callers = self._calls.enter()
        try:
            plan = self._plan(encoded, callers)
            session = self.sessions.session(family, plan.threads)

            def run(batch: Batch) -> None:
                texts = [encoded[index] for index in batch.indices]
                collect(batch, self._run_batch(session, graph, texts))
                self._counter.add(sum(text.num_tokens for text in texts), batch.num_tokens)
                report(len(batch.indices))

            run_side_by_side(plan.batches, run, runs=plan.runs)
        finally:
            self._calls.leave()

    def _plan(self, encoded: Sequence[EncodedText], callers: int) -> WorkPlan:
        lengths = [text.num_tokens for text in encoded]
        return plan_work(lengths, self.runner, self.tuning, cores=self.cores, callers=callers, threads=self.threads)

    def _run_batch(self, session: Session, graph: Graph, texts: Sequence[EncodedText]) -> NDArray[np.float32]:
        return run_graph(session, graph, self.runner.feed(texts, graph))


def check_finite(answer: NDArray[np.float32], indices: Sequence[int], first_index: int) -> None:
    """Check answers (num_texts, size) for NaN and infinity.

    Args:
        answer: A row a text.
        indices: Which texts they are of.
        first_index: What is added to an index in the message.

    Raises:
        SessionError: naming the first text at fault.
    """
    finite = np.isfinite(answer).all(axis=1)
    if not finite.all():
        raise SessionError(
            f"the answer for text {first_index + indices[int(np.argmin(finite))]} holds NaN or infinity; "
            "run another precision, or export the checkpoint in fp32"
        )


def serialize_progress(on_progress: Progress | None) -> Progress:
    """Return a callback that worker threads may call at the same time."""
    if on_progress is None:
        return lambda _num_texts: None
    lock = threading.Lock()

    def report(num_texts: int) -> None:
        with lock:
            on_progress(num_texts)

    return report
