"""A file of items to a file of answers: chunk by chunk, resumable, complete under its name or not there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from filelock import FileLock, Timeout

from poolgraph.errors import InputError, TruncationWarning
from poolgraph.runtime.file_readers import STANDARD_INPUT, Row
from poolgraph.runtime.file_sources import FileSource
from poolgraph.runtime.file_state import (
    FileState,
    choose_start,
    describe_job,
    partial_path,
    save_state,
    state_path,
)
from poolgraph.runtime.file_tasks import FileTask
from poolgraph.runtime.file_writers import AnswerWriter, PartialWriter, check_output_format, open_writer
from poolgraph.runtime.late_interaction import find_length
from poolgraph.runtime.static_query import find_limit, name_side

if TYPE_CHECKING:
    from poolgraph.runtime.model import PoolingModel


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSummary:
    """What was done: ``num_resumed`` of the rows had been answered by an earlier, interrupted run."""

    num_rows: int
    num_resumed: int
    seconds: float


def answer_file(
    model: PoolingModel,
    task: FileTask,
    source: FileSource,
    output: Path,
    *,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    chunk_size: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> FileSummary:
    """Answer every item of ``source`` into ``output``, an .npy, .jsonl or .parquet file.

    While it works there are only ``output``.partial and ``output``.state.json; after a kill at any moment, the same
    call with ``resume=True`` continues after the last complete chunk, to the same bytes as an uninterrupted run.

    Args:
        model: The model.
        task: What is answered.
        source: Where the items are.
        output: The file to make.
        options: Keywords of the task.
        resume: Continue an interrupted run where there is one.
        overwrite: Start over, and replace a finished ``output``.
        chunk_size: Items between two records of progress, at most; None takes the task's.
        on_progress: Called with the number of items done so far.

    Raises:
        InputError: the input or an item is not acceptable, ``output`` exists or cannot be written, or the interrupted
            run differs from this one.
    """
    options = {} if options is None else options
    started = time.perf_counter()
    task.check(model, options)
    check_output(output, array=task.array, overwrite=overwrite)
    _check_other_file(source, output)
    with _hold(output):
        job = describe_job(model, source, task.name, options, chunk_size or task.chunk_items)
        state = choose_start(output, job, resume=resume, overwrite=overwrite)
        if state.num_rows == 0:
            state_path(output).unlink(missing_ok=True)
        writer = open_writer(
            output, partial_path(output), array=task.array, num_rows=state.num_rows, size_bytes=state.size_bytes
        )
        try:
            num_rows = _answer_rest(model, task, source, writer, output, state=state, on_progress=on_progress)
            writer.finish(output)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}. Cure that, then continue: --resume.") from error
        finally:
            writer.close()
            if not state_path(output).exists():
                partial_path(output).unlink(missing_ok=True)
        state_path(output).unlink(missing_ok=True)
    return FileSummary(num_rows=num_rows, num_resumed=state.num_rows, seconds=time.perf_counter() - started)


def answer_items(
    model: PoolingModel,
    task: FileTask,
    items: Iterable[Row],
    writer: AnswerWriter,
    *,
    options: Mapping[str, Any],
    chunk_size: int | None = None,
    first_index: int = 0,
    on_chunk: Callable[[int], None] | None = None,
) -> int:
    """Answer items chunk by chunk into ``writer``; return the index after the last one.

    ``on_chunk`` is called after each chunk with the number of items done, counted from the start of the input, as the
    indices in messages are. Texts that were cut are warned of once, at the end.
    """
    task.check(model, options)
    done, num_cut = first_index, 0
    size = chunk_size or task.chunk_items
    for chunk in cut_chunks(items, chunk_size=size, max_characters=task.chunk_characters):
        answers, num_cut_here = task.answer(model, chunk, options, done)
        writer.append(answers)
        done += len(chunk)
        num_cut += num_cut_here
        if on_chunk is not None:
            on_chunk(done)
    if num_cut:
        side = name_side(model.manifest, options.get("side"), options.get("prompt_name"))
        own = find_limit(model.manifest, side) or find_length(model.manifest, side)
        limit = own or model.manifest.limits.max_model_len
        message = task.cut_warning.format(num_cut=num_cut, num_items=done - first_index, limit=limit)
        warnings.warn(TruncationWarning(message, num_cut), stacklevel=2)
    return done


def cut_chunks(items: Iterable[Row], *, chunk_size: int, max_characters: int) -> Iterator[list[Row]]:
    """Cut a stream into lists; where a chunk ends depends only on the items since the last cut."""
    chunk: list[Row] = []
    num_characters = 0
    for item in items:
        chunk.append(item)
        num_characters += _count_characters(item)
        if len(chunk) >= chunk_size or num_characters >= max_characters:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def check_output(output: Path, *, array: str | None, overwrite: bool = False) -> None:
    """Raise InputError if ``output`` has a suffix that does not fit, no folder, or is there and not to be replaced."""
    check_output_format(output, array=array)
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist; make it first")
    if output.is_dir():
        raise InputError(f"{output} is a folder; name a file")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; give --force to replace it, or name another file")


def _check_other_file(source: FileSource, output: Path) -> None:
    if source.path != STANDARD_INPUT and output.exists() and output.samefile(source.path):
        raise InputError(f"{output} is the input itself; name another file for the answers")


def _answer_rest(
    model: PoolingModel,
    task: FileTask,
    source: FileSource,
    writer: PartialWriter,
    output: Path,
    *,
    state: FileState,
    on_progress: Callable[[int], None] | None,
) -> int:
    def record(num_rows: int) -> None:
        save_state(output, msgspec.structs.replace(state, num_rows=num_rows, size_bytes=writer.sync()))
        if on_progress is not None:
            on_progress(num_rows)

    job = state.job
    rest = islice(source.read(), state.num_rows, None)
    if on_progress is not None:
        on_progress(state.num_rows)
    return answer_items(
        model,
        task,
        rest,
        writer,
        options=job.options,
        chunk_size=job.chunk_size,
        first_index=state.num_rows,
        on_chunk=record,
    )


def _count_characters(item: Row | str | Sequence[str]) -> int:
    return len(item) if isinstance(item, str) else sum(map(_count_characters, item))


@contextmanager
def _hold(output: Path) -> Iterator[None]:
    """Keep a second process from working on the same output."""
    path = output.with_name(output.name + ".lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{output} is being written by another process; wait for it, or name another file") from error
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()
