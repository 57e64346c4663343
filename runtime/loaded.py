"""A loaded artifact: sessions, tokenizer and manifest, and the runs that every task is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import TaskNotSupported
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest, Variant
from poolgraph.runtime.attention_route import warn_of_slow_attention
from poolgraph.runtime.bound_executor import BoundExecutor, WarmUp, build_bound_executor
from poolgraph.runtime.buckets import Bucket, Padding
from poolgraph.runtime.cpu import CpuInfo, read_cpu_info
from poolgraph.runtime.executor import BatchAnswer, Executor, Progress, Slots, serialize_progress
from poolgraph.runtime.loading import BucketWish, check_count, check_name, open_sessions, resolve_directory
from poolgraph.runtime.pipeline import (
    BOUND_WINDOWS_AHEAD,
    FIRST_BOUND_WINDOW,
    WINDOW_TEXTS,
    WINDOW_VALUES,
    encode_windows,
    run_ahead,
)
from poolgraph.runtime.provider_options import BOUND_DEVICES
from poolgraph.runtime.providers import CPU_PROVIDER, Wish, check_verified
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.session import SessionPool
from poolgraph.runtime.static_query import load_static_weights, weigh_rows
from poolgraph.runtime.texts import resolve_texts, resolve_truncation
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.runtime.tuning import Tuning, load_tuning
from poolgraph.tasks import TASK_FAMILY

RawAnswer = TypeVar("RawAnswer")


class LoadedModel:
    """What all tasks share; ``PoolingModel`` adds them. Safe to use from several threads.

    Attributes:
        path: The artifact's directory.
        manifest: Its manifest.
        variant: The variant that runs.
        provider: Full name of the execution provider that runs it.
        tokenizer: The artifact's tokenizer.
    """

    def __init__(
        self, *, path: Path, manifest: Manifest, sessions: SessionPool, executor: Executor | BoundExecutor
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.variant: Variant = sessions.variant
        self.provider = sessions.provider
        self.tokenizer = TextTokenizer(path, manifest)
        self._static_weights = load_static_weights(path, manifest)
        self._sessions = sessions
        self._executor = executor

    @classmethod
    def load(
        cls,
        path: str | Path,
        provider: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        *,
        variant: str | None = None,
        fallback: bool = False,
        allow_unverified: bool = False,
        max_batch_tokens: int | None = None,
        tuning: Tuning | None = None,
        buckets: str | Path | Sequence[Bucket] | None = None,
        gpu_mem_limit: int | None = None,
        cuda_graphs: bool = True,
        on_warm_up: WarmUp | None = None,
    ) -> Self:
        """Load a model.

        Args:
            path: An artifact's directory; or a checkpoint folder or hub id, exported into the cache for what is asked.
            provider: ``cpu``, ``cuda``, ``tensorrt`` or a full name; None takes CUDA where it loads, else the CPU.
            precision: ``fp32``, ``int8`` and so on; None takes the first in the artifact's list.
            threads: Threads of a run; None takes what ``bench --tune`` stored, else the number of batches decides.
            variant: Name of one variant of the artifact.
            fallback: Take another provider, with a warning, when the one asked for does not load.
            allow_unverified: Run a variant that verification never passed.
            max_batch_tokens: Token budget of a batch, or of planned buckets; None takes the stored or default one.
            tuning: What is taken instead of the stored plan, whose file is then not read.
            buckets: On a GPU, the shapes that run: a file of ``poolgraph plan``, or the buckets themselves; None takes
                ``buckets.json`` beside the artifact, else plans them by the model's limit alone.
            gpu_mem_limit: Bytes that each graph's arena may take of the GPU; None for all there are.
            cuda_graphs: On a GPU, whether each bucket gets a CUDA graph.
            on_warm_up: On a GPU, called while the model loads with the number of buckets that are warm, and of all.

        Raises:
            ArtifactError: the artifact is damaged, or has no such variant.
            ProviderError: the provider asked for does not load.
            InputError: an argument of a wrong type, a count below 1, no folder, or buckets of another layout.
        """
        _check_counts(threads=threads, max_batch_tokens=max_batch_tokens, gpu_mem_limit=gpu_mem_limit)
        for name, value in (("provider", provider), ("precision", precision), ("variant", variant)):
            check_name(name, value)
        wish = Wish(provider=provider, precision=precision, variant=variant, fallback=fallback)
        directory = resolve_directory(path, wish)
        manifest = open_artifact(directory, allow_unfinished=allow_unverified)
        cpu = read_cpu_info()
        bucket_wish = BucketWish(
            buckets=buckets, max_batch_tokens=max_batch_tokens, gpu_mem_limit=gpu_mem_limit, cuda_graphs=cuda_graphs
        )
        sessions = open_sessions(directory, manifest, wish, cpu, bucket_wish)
        with _closed_on_failure(sessions):
            if not allow_unverified:
                check_verified(sessions.variant, directory)
            executor = (
                _warm_executor(sessions, manifest, on_warm_up)
                if sessions.provider in BOUND_DEVICES
                else _cpu_executor(sessions, manifest, cpu, threads, max_batch_tokens, tuning)
            )
        return cls(path=directory, manifest=manifest, sessions=sessions, executor=executor)

    def count_tokens(self, texts: str | Sequence[str]) -> list[int]:
        """Count the tokens of each text, special tokens included."""
        return self.tokenizer.count(resolve_texts(texts))

    def run_sequence(
        self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Run the sequence graph of tokenized texts.

        Args:
            encoded: Tokenized texts.
            on_progress: Called with the number of texts that each finished batch adds, never twice at a time.

        Returns:
            (num_texts, size), the graph's raw output in input order.

        Raises:
            SessionError: ONNX Runtime failed, or an answer is not finite.
        """
        self._check_family("sequence")
        return self._executor.run_sequence(encoded, on_progress=on_progress)

    def run_token(
        self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None
    ) -> list[NDArray[np.float32]]:
        """Run the token graph; arguments and errors are those of ``run_sequence``.

        Returns:
            One array (num_tokens, size) a text: the graph's raw output in input order.

        Raises:
            TaskNotSupported: the artifact has no token graph.
        """
        self._check_family("token")
        return self._executor.run_token(encoded, on_progress=on_progress)

    def run_query(self, encoded: Sequence[EncodedText], *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """Weigh the tokens of queries by the model's table; no graph runs.

        Args:
            encoded: Of ``encode_queries``; a query may have no token.
            on_progress: Called with the number of queries.

        Returns:
            (num_texts, embedding_size), in input order.

        Raises:
            TaskNotSupported: the model has no table.
        """
        answers = weigh_rows(encoded, self._check_table())
        if on_progress is not None:
            on_progress(len(encoded))
        return answers

    def _check_table(self) -> NDArray[np.float32]:
        if self._static_weights is None:
            raise TaskNotSupported(f"{self.manifest.source.model!r} has no table of queries; its graphs answer them")
        return self._static_weights

    @property
    def first_window(self) -> int | None:
        """Texts that are tokenized before the first run of a call; None for as many as a window has."""
        return FIRST_BOUND_WINDOW if isinstance(self._executor, BoundExecutor) else None

    @property
    def padding(self) -> Padding:
        """Tokens of texts and of padding that were computed so far, and in how many runs."""
        return self._executor.padding

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that run on a GPU, largest first; none on the CPU, which runs texts of any length as they are."""
        return self._executor.buckets if isinstance(self._executor, BoundExecutor) else ()

    def plan_slots(self) -> Slots:
        """Return how a scheduler that makes batches itself uses the machine."""
        return self._executor.plan_slots()

    def run_batch(self, texts: Sequence[EncodedText], family: str, *, threads: int) -> BatchAnswer:
        """Run one batch that a scheduler made; see ``Executor.run_batch``, for ``query`` see ``run_query``."""
        if family == "query":
            rows = self.run_query(texts)
            return BatchAnswer(rows=rows, finite=np.ones(len(rows), dtype=np.bool_))
        self._check_family(family)
        return self._executor.run_batch(texts, family, threads=threads)

    def close(self) -> None:
        """Let go of the sessions and their memory."""
        self._executor.close()
        self._sessions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """Name the model, the variant and the provider."""
        name, source = type(self).__name__, self.manifest.source.model
        return f"{name}({source!r}, variant={self.variant.name!r}, provider={self.provider!r})"

    def _encode_windows(
        self, texts: Sequence[str], prompt: str, *, truncate: bool, first_index: int = 0
    ) -> Generator[tuple[int, Sequence[EncodedText]], None, None]:
        """Yield tokenized windows; ``first_index`` counts in messages only."""
        truncate_to = resolve_truncation(truncate)
        offset = first_index

        def encode(window: Sequence[str], *, first_index: int) -> list[EncodedText]:
            return self.tokenizer.encode(
                window, prompt=prompt, truncate_to=truncate_to, first_index=offset + first_index
            )

        yield from encode_windows(texts, encode, self.first_window, window=self._window_texts)

    @property
    def _window_texts(self) -> int:
        """Texts of a window, fewer where their answers are as wide as a vocabulary."""
        return max(1, min(WINDOW_TEXTS, WINDOW_VALUES // self.manifest.pooler.embedding_size))

    def _run_windows(
        self,
        windows: Generator[tuple[int, Sequence[EncodedText]], None, None],
        run: Callable[..., RawAnswer],
        take: Callable[[int, Sequence[EncodedText], RawAnswer], None],
        *,
        num_items: int,
        first_index: int = 0,
        on_progress: Progress | None,
    ) -> int:
        """Answer tokenized windows.

        Args:
            windows: Of ``encode_windows``; closed at the end.
            run: ``run_sequence`` or ``run_token`` of the executor.
            take: Called with each window's first index, its texts and their raw answers, in order.
            num_items: Texts of all windows.
            first_index: Index of the first text in the caller's own list, for messages.
            on_progress: Called with the number of texts that each finished batch adds, never twice at a time.

        Returns:
            How many texts were cut.
        """
        is_one = self.first_window is None or num_items <= self.first_window
        ahead = 0 if is_one else BOUND_WINDOWS_AHEAD
        report = serialize_progress(on_progress)

        def answer(window: tuple[int, Sequence[EncodedText]], stopped: threading.Event) -> RawAnswer:
            def report_unless_stopped(num_texts: int) -> None:
                if stopped.is_set():
                    raise CancelledError  # between two batches: a window may take minutes
                report(num_texts)

            return run(window[1], on_progress=report_unless_stopped, first_index=first_index + window[0])

        num_cut = 0
        with closing(windows), closing(run_ahead(windows, answer, ahead=ahead)) as answers:
            for (first, window), raw in answers:
                take(first, window, raw)
                num_cut += count_cut(window)
        return num_cut

    def check_task(self, task: str) -> None:
        """Check that the artifact answers a pooling task and that the variant has the graph for it.

        Raises:
            TaskNotSupported: it does not, or has not.
        """
        if task not in self.manifest.tasks:
            raise TaskNotSupported(
                f"{self.manifest.source.model!r} cannot {task}; the artifact's tasks are {list(self.manifest.tasks)}"
            )
        self._check_family(TASK_FAMILY[task])

    def _check_family(self, family: str) -> None:
        if family not in self.variant.graphs:
            raise TaskNotSupported(
                f"variant {self.variant.name!r} has no {family} graph, only {sorted(self.variant.graphs)}; "
                f"the artifact's tasks are {list(self.manifest.tasks)}"
            )


def _check_counts(**counts: int | None) -> None:
    for name, number in counts.items():
        if number is not None:
            check_count(name, number)


@contextmanager
def _closed_on_failure(sessions: SessionPool) -> Iterator[None]:
    """Close the sessions when the block fails: a traceback that is kept would keep what they hold of a device."""
    try:
        yield
    except BaseException:
        sessions.close()
        raise


def _warm_executor(sessions: SessionPool, manifest: Manifest, on_warm_up: WarmUp | None) -> BoundExecutor:
    """Build the executor of a provider that runs in buckets, and run each bucket of the first graph once."""
    warn_of_slow_attention(sessions.directory, sessions.variant, sessions.provider)
    executor = build_bound_executor(sessions, manifest)
    try:
        executor.warm_up(next(iter(sessions.variant.graphs)), on_warm_up)
    except BaseException:
        executor.close()
        raise
    return executor


def _cpu_executor(
    sessions: SessionPool,
    manifest: Manifest,
    cpu: CpuInfo,
    threads: int | None,
    max_batch_tokens: int | None,
    tuning: Tuning | None,
) -> Executor:
    if tuning is None:
        is_tuned = sessions.provider == CPU_PROVIDER and None in (threads, max_batch_tokens)
        tuning = load_tuning(sessions.directory, cpu, sessions.variant.name) if is_tuned else Tuning()
    if max_batch_tokens is not None:
        tuning = replace(tuning, max_batch_tokens=max_batch_tokens)
    return Executor(
        sessions=sessions,
        runner=build_runner(sessions.variant, manifest.tokenization),
        cores=cpu.num_cores,
        threads=threads,
        tuning=tuning,
    )


def count_cut(encoded: Sequence[EncodedText]) -> int:
    """Count the texts that truncation shortened."""
    return sum(text.num_truncated_tokens > 0 for text in encoded)


@contextmanager
def progress_bar(num_texts: int, *, shown: bool) -> Iterator[Progress | None]:
    """Show a progress bar and yield what to call with each number of finished texts, None where none is shown."""
    if not shown:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=num_texts, unit="text") as bar:
        yield bar.update
