"""Progress on the screen: a bar or a running clock on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final, TextIO

_LOG_INTERVAL_S: Final = 5.0


@contextmanager
def print_stages(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of each stage as it begins; on a terminal each gets its seconds."""
    started: list[float] = []
    is_terminal = stream.isatty()

    def end_stage() -> None:
        if started and is_terminal:
            print(f" {time.perf_counter() - started[-1]:.1f} s", file=stream, flush=True)

    def begin_stage(name: str) -> None:
        end_stage()
        started.append(time.perf_counter())
        print(f"{name} ...", end="" if is_terminal else "\n", file=stream, flush=True)

    try:
        yield begin_stage
    finally:
        end_stage()


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
            print(f"poolgraph: {done} of {total} texts" if total else f"poolgraph: {done} texts", file=stream)

    return log
