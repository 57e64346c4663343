"""A file of texts to a file of vectors: chunk by chunk, resumable, complete under its name or not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from filelock import FileLock, Timeout

from poolgraph.errors import InputError
from poolgraph.runtime.embed_state import (
    EmbedOptions,
    EmbedState,
    TextSource,
    choose_start,
    describe_job,
    partial_path,
    save_state,
    state_path,
)
from poolgraph.runtime.texts import warn_of_cuts
from poolgraph.runtime.vector_files import PartialWriter, VectorWriter, check_output_format, open_writer

if TYPE_CHECKING:
    from poolgraph.runtime.model import PoolingModel

CHUNK_TEXTS: Final = 2048
CHUNK_CHARACTERS: Final = 1_000_000
"""A chunk ends at whichever comes first, so that long documents are recorded as often as short ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSummary:
    """What was done: ``num_resumed`` of the texts had been embedded by an earlier, interrupted run."""

    num_texts: int
    num_resumed: int
    seconds: float


def embed_file(
    model: PoolingModel,
    source: TextSource,
    output: Path,
    *,
    options: EmbedOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    chunk_size: int = CHUNK_TEXTS,
    on_progress: Callable[[int], None] | None = None,
) -> EmbedSummary:
    """Embed every text of ``source`` into ``output``, an .npy, .jsonl or .parquet file.

    While it works there are only ``output``.partial and ``output``.state.json; after a kill at any moment, the same
    call with ``resume=True`` continues after the last complete chunk, to the same bytes as an uninterrupted run.

    Args:
        model: The model.
        source: Where the texts are.
        output: The file to make.
        options: How texts become vectors.
        resume: Continue an interrupted run where there is one.
        overwrite: Start over, and replace a finished ``output``.
        chunk_size: Texts between two records of progress, at most.
        on_progress: Called with the number of texts done so far.

    Raises:
        InputError: the input or a text is not acceptable, ``output`` exists or cannot be written, or the interrupted
            run differs from this one.
    """
    options = options or EmbedOptions()
    started = time.perf_counter()
    check_options(model, options)
    check_output(output, overwrite=overwrite)
    with _hold(output):
        job = describe_job(model, source, options, chunk_size)
        state = choose_start(output, job, resume=resume, overwrite=overwrite)
        if state.num_rows == 0:
            state_path(output).unlink(missing_ok=True)
        writer = open_writer(output, partial_path(output), num_rows=state.num_rows, size_bytes=state.size_bytes)
        try:
            num_texts = _embed_rest(model, source, writer, output, state=state, on_progress=on_progress)
            writer.finish(output)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}. Cure that, then continue: --resume.") from error
        finally:
            writer.close()
            if not state_path(output).exists():
                partial_path(output).unlink(missing_ok=True)
        state_path(output).unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return EmbedSummary(num_texts=num_texts, num_resumed=state.num_rows, seconds=seconds)


def embed_texts(
    model: PoolingModel,
    texts: Iterable[str],
    writer: VectorWriter,
    *,
    options: EmbedOptions,
    chunk_size: int = CHUNK_TEXTS,
    first_index: int = 0,
    on_chunk: Callable[[int], None] | None = None,
) -> int:
    """Embed texts chunk by chunk into ``writer``; return the index after the last one.

    ``on_chunk`` is called after each chunk with the number of texts done, counted from the start of the input, as the
    indices in messages are. Texts that were cut are warned of once, at the end.
    """
    check_options(model, options)
    done, num_cut = first_index, 0
    for chunk in cut_chunks(texts, chunk_size=chunk_size):
        rows, num_cut_here = model.embed_chunk(chunk, first_index=done, **msgspec.structs.asdict(options))
        writer.append(rows)
        done += len(chunk)
        num_cut += num_cut_here
        if on_chunk is not None:
            on_chunk(done)
    warn_of_cuts(num_cut, done - first_index, model.manifest)
    return done


def check_options(model: PoolingModel, options: EmbedOptions) -> None:
    """Raise InputError for options that the model does not have, whatever the texts."""
    model.check_embed_options(prompt_name=options.prompt_name, prompt=options.prompt, dimensions=options.dimensions)


def cut_chunks(texts: Iterable[str], *, chunk_size: int, max_characters: int = CHUNK_CHARACTERS) -> Iterator[list[str]]:
    """Cut a stream into lists; where a chunk ends depends only on the texts since the last cut."""
    chunk: list[str] = []
    num_characters = 0
    for text in texts:
        chunk.append(text)
        num_characters += len(text)
        if len(chunk) >= chunk_size or num_characters >= max_characters:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def check_output(output: Path, *, overwrite: bool = False) -> None:
    """Raise InputError if ``output`` has an unknown suffix, no folder, or is there already and not to be replaced."""
    check_output_format(output)
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist; make it first")
    if output.is_dir():
        raise InputError(f"{output} is a folder; name a file")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; give --force to replace it, or name another file")


def _embed_rest(
    model: PoolingModel,
    source: TextSource,
    writer: PartialWriter,
    output: Path,
    *,
    state: EmbedState,
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
    return embed_texts(
        model,
        rest,
        writer,
        options=job.options,
        chunk_size=job.chunk_size,
        first_index=state.num_rows,
        on_chunk=record,
    )


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
