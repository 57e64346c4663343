"""Progress on the screen: a bar or a running clock on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final, TextIO

_LOG_INTERVAL_S: Final = 5.0


def say(text: str, *, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print a notice, on standard error unless told; one that cannot be written stops nothing."""
    with suppress(OSError):
        print(text, end=end, file=stream or sys.stderr, flush=True)


def open_closed_streams() -> None:
    """Lead descriptors 0 to 2 that are closed to nowhere, so that no file of ours is opened as one of them.

    Libraries write messages to descriptors 1 and 2; without this they could end up in the file of vectors.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process


@contextmanager
def print_stages(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of each stage as it begins; on a terminal each gets its seconds."""
    started: list[float] = []
    is_terminal = stream.isatty()

    def end_stage() -> None:
        if started and is_terminal:
            say(f" {time.perf_counter() - started[-1]:.1f} s", stream=stream)

    def begin_stage(name: str) -> None:
        end_stage()
        started.append(time.perf_counter())
        say(f"{name} ...", stream=stream, end="" if is_terminal else "\n")

    try:
        yield begin_stage
    finally:
        end_stage()


def print_warm_up(stream: TextIO) -> Callable[[int, int], None]:
    """Return a function that takes how many of all buckets are warm: a running count on a terminal, else one line."""
    started = time.perf_counter()

    def show(done: int, total: int) -> None:
        seconds = time.perf_counter() - started
        if done == total:
            end = "\r" if stream.isatty() else ""
            say(f"{end}poolgraph: {total} buckets warm after {seconds:.1f} s", stream=stream)
        elif stream.isatty():
            say(f"\rpoolgraph: warming up bucket {done + 1} of {total}", stream=stream, end="")

    return show


@contextmanager
def print_progress(total: int | None, stream: TextIO) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of texts done: a bar on a terminal, a line every few seconds elsewhere.

    Its first call says what was done before the start, which says nothing about the speed of this run.
    """
    if not stream.isatty():
        yield _log_progress(total, stream)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=" texts", file=stream) as bar:
        calls = count()

        def move(done: int) -> None:
            if next(calls) == 0:
                bar.n = bar.initial = done
                bar.refresh()
            else:
                bar.update(done - bar.n)

        yield move


def _log_progress(total: int | None, stream: TextIO) -> Callable[[int], None]:
    printed = time.monotonic()

    def log(done: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= _LOG_INTERVAL_S:
            printed = time.monotonic()
            say(f"poolgraph: {done} of {total} texts" if total else f"poolgraph: {done} texts", stream=stream)

    return log
