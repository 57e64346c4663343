"""Runs the graphs of one variant in buckets: bound buffers, CUDA graphs, one thread, answers in input order."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError, SessionError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.bound_inputs import BOUND_LAYOUTS, output_width
from poolgraph.runtime.bound_slot import BoundSlot
from poolgraph.runtime.bucket_assignment import assign_texts
from poolgraph.runtime.buckets import (
    RUN_COST_TOKENS,
    Bucket,
    BucketBatch,
    Padding,
    PaddingCounter,
    halve_bucket,
    leave_out,
    lone_bucket,
    trim_bucket,
)
from poolgraph.runtime.executor import BatchAnswer, Progress, Slots, check_finite, serialize_progress
from poolgraph.runtime.out_of_memory import is_out_of_memory
from poolgraph.runtime.provider_options import BOUND_DEVICES
from poolgraph.runtime.run_cost import fit_run_cost
from poolgraph.runtime.session import SessionPool
from poolgraph.runtime.slot_pool import SlotPool
from poolgraph.runtime.tokenizer import EncodedText

WarmUp: TypeAlias = Callable[[int, int], None]
"""Called with the number of buckets that are warm and the number of all."""

Collect: TypeAlias = Callable[[BucketBatch, Sequence[EncodedText], NDArray[np.float32]], None]

_Result = TypeVar("_Result")

_IN_FLIGHT: Final = 2
"""Batches of a call that are staged or running: one runs while the next one is staged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    """A batch under way."""

    batch: BucketBatch
    texts: Sequence[EncodedText]
    slot: BoundSlot
    done: Future[None]


@dataclass(slots=True, kw_only=True, eq=False)
class BoundExecutor:
    """Runs tokenized texts through a variant's graphs in buckets; safe to use from several threads.

    Callers stage their batches and copy the answers out in threads of their own; all runs meet in one thread, since
    CUDA graphs, and the plans of cuDNN, belong to the thread that made them.

    Attributes:
        sessions: The variant's sessions.
        buckets: The planned shapes, largest first.
        device: ``cuda``, or ``cpu`` for the same code in the processor's memory.
        pad_token_id: The token of padding.
        uses_graphs: Whether each planned bucket gets a CUDA graph.
        max_model_len: Tokens of the longest text that the model takes, which a bucket's length may be rounded up from;
            None for any.
    """

    sessions: SessionPool
    buckets: tuple[Bucket, ...]
    device: str
    pad_token_id: int
    uses_graphs: bool
    max_model_len: int | None = None
    _counter: PaddingCounter = field(default_factory=PaddingCounter, init=False)
    _usable: tuple[Bucket, ...] = field(init=False)
    _run_costs: dict[str, int] = field(default_factory=dict, init=False)
    _pools: dict[str, SlotPool] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _thread: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._usable = self.buckets
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="poolgraph-inference")

    @property
    def padding(self) -> Padding:
        """Tokens of texts and of padding that were computed so far."""
        return self._counter.total

    def warm_up(self, family: str, on_warm_up: WarmUp | None = None) -> None:
        """Make and run every planned bucket, largest first, so that memory is allocated once; measure what a run costs.

        Args:
            family: The graph, ``sequence`` or ``token``.
            on_warm_up: Told of each bucket.

        Raises:
            SessionError: ONNX Runtime failed; a bucket that no memory is left for is left out instead, with a warning.
        """
        pool = self._pool(family)
        seconds: dict[Bucket, float] = {}
        for done, bucket in enumerate(self.buckets, start=1):
            try:
                seconds[bucket] = self._warm_bucket(pool, bucket)
            except SessionError as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse(bucket, error)
            if on_warm_up is not None:
                on_warm_up(done, len(self.buckets))
        self._run_costs[family] = fit_run_cost({bucket.size: elapsed for bucket, elapsed in seconds.items()})

    def run_sequence(
        self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None, first_index: int = 0
    ) -> NDArray[np.float32]:
        """Run the sequence graph; return its raw answers (num_texts, size) in input order.

        Args:
            encoded: Tokenized texts.
            on_progress: Told of finished texts.
            first_index: Index of the first text in the caller's own list, for messages.

        Raises:
            SessionError: ONNX Runtime failed, an answer is not finite, or no memory is left for a single text.
        """
        answers = self._sequences(encoded, on_progress)
        check_finite(answers, range(len(encoded)), first_index)
        return answers

    def run_token(
        self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None, first_index: int = 0
    ) -> list[NDArray[np.float32]]:
        """Run the token graph; return its raw answers, one (num_tokens, size) a text, in input order.

        Arguments and errors as of ``run_sequence``.
        """
        answers = self._tokens(encoded, on_progress)
        for index, rows in enumerate(answers):
            check_finite(rows.reshape(1, -1), [index], first_index)
        return answers

    def plan_slots(self) -> Slots:
        """Return what a scheduler of single batches may use: while one runs, the next is staged by another thread."""
        return Slots(
            runs=_IN_FLIGHT,
            threads=1,
            lone_threads=1,
            max_batch_tokens=max(bucket.size for bucket in self.buckets),
            layout=self.buckets[0].layout,
            in_turn=True,
        )

    def run_batch(self, texts: Sequence[EncodedText], family: str, *, threads: int) -> BatchAnswer:
        """Run texts that a scheduler put together; answers that are not finite are marked, not raised.

        Args:
            texts: Of any lengths.
            family: Whose graph runs.
            threads: Without effect on a device.

        Raises:
            SessionError: ONNX Runtime failed, or no memory is left for a single text.
        """
        if family == "sequence":
            answer = self._sequences(texts)
            return BatchAnswer(rows=answer, finite=np.asarray(np.isfinite(answer).all(axis=1)))
        rows = self._tokens(texts)
        return BatchAnswer(rows=rows, finite=np.array([bool(np.isfinite(one).all()) for one in rows]))

    def _sequences(self, encoded: Sequence[EncodedText], on_progress: Progress | None = None) -> NDArray[np.float32]:
        answers = np.empty((len(encoded), output_width(self.sessions.graph("sequence"))), dtype=np.float32)

        def collect(batch: BucketBatch, texts: Sequence[EncodedText], answer: NDArray[np.float32]) -> None:
            answers[list(batch.indices)] = answer

        self._run(encoded, "sequence", collect, on_progress)
        return answers

    def _tokens(self, encoded: Sequence[EncodedText], on_progress: Progress | None = None) -> list[NDArray[np.float32]]:
        answers: list[NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(encoded)

        def collect(batch: BucketBatch, texts: Sequence[EncodedText], answer: NDArray[np.float32]) -> None:
            taken = BOUND_LAYOUTS[batch.bucket.layout].token_rows(answer, texts)
            for index, rows in zip(batch.indices, taken, strict=True):
                answers[index] = rows.copy()

        self._run(encoded, "token", collect, on_progress)
        return answers

    def close(self) -> None:
        """Let go of buffers, CUDA graphs and the thread, once what is under way has ended; a later call is refused."""
        self._thread.shutdown(wait=True)
        for pool in self._pools.values():
            pool.clear()
        self._pools.clear()

    def _run(self, encoded: Sequence[EncodedText], family: str, collect: Collect, on_progress: Progress | None) -> None:
        pool = self._pool(family)
        report = serialize_progress(on_progress)
        lengths = [len(text.input_ids) for text in encoded]
        run_cost = self._run_costs.get(family) or next(iter(self._run_costs.values()), RUN_COST_TOKENS)
        queue = deque(assign_texts(lengths, self._usable, run_cost=run_cost, lone=self._lone_bucket))
        flights: deque[_Flight] = deque()
        try:
            while queue or flights:
                if queue and len(flights) < _IN_FLIGHT:
                    flight = self._take_off(pool, queue, encoded, wait=not flights)
                    if flight is not None:
                        flights.append(flight)
                        continue
                if flights:
                    self._land(pool, flights.popleft(), queue, collect, report)
        finally:
            self._abandon(pool, flights)

    def _lone_bucket(self, length: int) -> Bucket:
        """Return the bucket of a text that no usable one is long enough for; there may be none at all."""
        bucket = lone_bucket(length, self.buckets[0].layout)
        return bucket if self.max_model_len is None else trim_bucket(bucket, max(length, self.max_model_len))

    def _take_off(
        self, pool: SlotPool, queue: deque[BucketBatch], encoded: Sequence[EncodedText], *, wait: bool
    ) -> _Flight | None:
        """Stage the next batch and queue its run; None if its bucket is in use, or was split for lack of memory."""
        batch = queue[0]
        texts = [encoded[index] for index in batch.indices]
        slot = None
        try:
            slot = pool.acquire(batch.bucket, wait=wait)
            if slot is None:
                return None
            slot.stage(texts)
            done = self._submit(slot.run)
        except BaseException as error:
            if slot is not None:
                pool.drop(slot)
            self._split(queue.popleft(), texts, queue, error)
            return None
        queue.popleft()
        return _Flight(batch=batch, texts=texts, slot=slot, done=done)

    def _land(
        self, pool: SlotPool, flight: _Flight, queue: deque[BucketBatch], collect: Collect, report: Progress
    ) -> None:
        """Wait for a batch and hand its answer on; put its halves into the queue if there was no memory for it."""
        try:
            flight.done.result()
            answer = flight.slot.fetch()
        except BaseException as error:
            pool.drop(flight.slot)
            self._split(flight.batch, flight.texts, queue, error)
            return
        pool.release(flight.slot)
        self._counter.add(flight.batch.num_tokens, flight.batch.bucket.size)
        collect(flight.batch, flight.texts, answer)
        report(len(flight.texts))

    def _abandon(self, pool: SlotPool, flights: Iterable[_Flight]) -> None:
        """Wait for what is still under way when a call fails: its slots may be given to others only then."""
        for flight in flights:
            if flight.done.exception() is None:
                pool.release(flight.slot)
            else:
                pool.drop(flight.slot)

    def _split(
        self, batch: BucketBatch, texts: Sequence[EncodedText], queue: deque[BucketBatch], error: BaseException
    ) -> None:
        """Put a batch that no memory was left for in front of the queue in smaller buckets; raise any other error."""
        if not (isinstance(error, SessionError) and is_out_of_memory(error)):
            raise error
        lengths = [text.num_tokens for text in texts]
        smaller = halve_bucket(batch.bucket, max(lengths))
        if smaller.size >= batch.bucket.size:
            raise SessionError(
                f"no memory is left for a text of {max(lengths)} tokens ({error}); free memory of the device, raise "
                "gpu_mem_limit, or load the model with fewer or smaller buckets"
            ) from error
        self._refuse(batch.bucket, error)
        for part in reversed(assign_texts(lengths, [smaller])):
            queue.appendleft(replace(part, indices=tuple(batch.indices[place] for place in part.indices)))

    def _refuse(self, bucket: Bucket, error: Exception) -> None:
        """Use a bucket no more: the next batch of it would fail too."""
        with self._lock:
            is_news = bucket in self._usable
            self._usable = leave_out(self._usable, bucket)
            pools = tuple(self._pools.values())
        for pool in pools:
            pool.discard(bucket)
        if is_news:
            warnings.warn(
                f"no memory is left for the bucket {bucket} ({error}). Smaller ones are used instead.",
                UserWarning,
                stacklevel=2,
            )

    def _pool(self, family: str) -> SlotPool:
        self.sessions.graph(family)  # raises where the variant has none
        with self._lock:
            if family not in self._pools:
                # Neither part holds this executor: a model that is let go of gives its memory back at once.
                self._pools[family] = SlotPool(
                    build=partial(
                        _build_slot,
                        self.sessions,
                        family,
                        device=self.device,
                        pad_token_id=self.pad_token_id,
                        max_model_len=self.max_model_len,
                    ),
                    dispose=partial(_dispose, self._thread),
                    planned=frozenset(self.buckets),
                    uses_graphs=self.uses_graphs,
                )
            return self._pools[family]

    def _warm_bucket(self, pool: SlotPool, bucket: Bucket) -> float:
        """Make a bucket's slots and run them; return the seconds of a run that is warm."""
        slots: list[BoundSlot] = []
        try:
            for _ in range(pool.depth(bucket)):
                slot = pool.acquire(bucket, wait=not slots)
                if slot is not None:
                    slots.append(slot)
                    self._submit(slot.warm_up).result()
            elapsed = self._submit(partial(_time, slots[0].run)).result()
        except BaseException:
            for slot in slots:
                pool.drop(slot)
            raise
        for slot in slots:
            pool.release(slot)
        return elapsed

    def _submit(self, run: Callable[[], _Result]) -> Future[_Result]:
        return _submit(self._thread, run)


def build_bound_executor(sessions: SessionPool, manifest: Manifest) -> BoundExecutor:
    """Build the executor of a provider that runs in buckets.

    Raises:
        ArtifactError: a variant of a layout that no bucket has.
    """
    layout = sessions.variant.layout
    if layout not in BOUND_LAYOUTS:
        raise ArtifactError(
            f"variant {sessions.variant.name!r} has the layout {layout!r}; on {sessions.provider} this poolgraph runs "
            f"{sorted(BOUND_LAYOUTS)}"
        )
    return BoundExecutor(
        sessions=sessions,
        buckets=sessions.settings.buckets,
        device=BOUND_DEVICES[sessions.provider],
        pad_token_id=manifest.tokenization.pad_token_id,
        uses_graphs=sessions.settings.uses_graphs,
        max_model_len=manifest.limits.max_model_len,
    )


def _time(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _build_slot(sessions: SessionPool, family: str, **options: Any) -> BoundSlot:
    """Make a slot; the first of a family opens its session, which loads the weights."""
    return BoundSlot(session=sessions.session(family, 1), graph=sessions.graph(family), family=family, **options)


def _submit(thread: ThreadPoolExecutor, run: Callable[[], _Result]) -> Future[_Result]:
    try:
        return thread.submit(run)
    except RuntimeError as error:
        raise SessionError("the model is closed; load it again") from error


def _dispose(thread: ThreadPoolExecutor, slot: BoundSlot) -> None:
    if slot.captured:
        # Of a closed model it goes with the session; what a sick device says, the error that led here says better.
        with contextlib.suppress(Exception):
            _submit(thread, slot.release_graph).result()
