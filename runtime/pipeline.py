"""Keeps the cores busy: batches side by side, the next window of texts tokenized meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

WINDOW_TEXTS: Final = 4096
"""Texts tokenized and planned together: bounds memory, and is enough for batches of equal length to fill."""

WINDOW_VALUES: Final = 2**25
"""Numbers that the answers of a window's texts have at most, 128 MiB: a weight a word of a vocabulary makes many."""

FIRST_BOUND_WINDOW: Final = 512
"""A GPU answers a window in the time that the next one of twice as many texts is tokenized in, or sooner."""

BOUND_WINDOWS_AHEAD: Final = 1
"""Windows that run on a GPU beside the one whose answer the caller waits for."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Encoded = TypeVar("Encoded")
Item_contra = TypeVar("Item_contra", contravariant=True)
Encoded_co = TypeVar("Encoded_co", covariant=True)


class EncodeWindow(Protocol[Item_contra, Encoded_co]):
    """Tokenizes one window of texts, or of pairs of texts; ``first_index`` is the index of its first one."""

    def __call__(self, items: Sequence[Item_contra], /, *, first_index: int) -> Sequence[Encoded_co]:
        """Tokenize."""


class CallCounter:
    """Counts the calls under way, so that they share the cores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_calls = 0

    def enter(self) -> int:
        """Count a call in and return how many are under way with it."""
        with self._lock:
            self._num_calls += 1
            return self._num_calls

    def leave(self) -> None:
        """Count a call out."""
        with self._lock:
            self._num_calls -= 1


def run_side_by_side(items: Sequence[Item], run: Callable[[Item], None], *, runs: int) -> None:
    """Run every item once, up to ``runs`` of them at a time, in order of arrival; no thread is started for one run.

    The calling thread works too. The first error stops the rest and is raised once the runs under way have ended.
    """
    if runs == 1 or len(items) <= 1:
        for item in items:
            run(item)
        return
    queue, lock, stop = iter(items), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                run(item)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(runs - 1, thread_name_prefix="poolgraph-run") as pool:
        helpers = [pool.submit(work) for _ in range(runs - 1)]
        try:
            work()
            for helper in helpers:
                helper.result()
        except BaseException:
            stop.set()
            raise


def encode_windows(
    items: Sequence[Item],
    encode: EncodeWindow[Item, Encoded],
    first_window: int | None = None,
    *,
    window: int = WINDOW_TEXTS,
) -> Generator[tuple[int, Sequence[Encoded]], None, None]:
    """Yield ``(first_index, encoded items)`` window by window; the next one is tokenized while the caller works.

    At most two windows are held at a time. No thread is started for a single window.

    Args:
        items: What is tokenized.
        encode: Tokenizes a window of them.
        first_window: Items of the first window, each further one having twice as many up to ``window``: for a caller
            that is faster than tokenizing and would wait for the first window. None makes all of them alike.
        window: Items of a window.
    """
    bounds = plan_windows(len(items), window if first_window is None else min(first_window, window), window)
    if len(bounds) <= 1:
        yield 0, encode(items, first_index=0)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="poolgraph-tokenize") as pool:
        pending = pool.submit(encode, items[: bounds[0][1]], first_index=0)
        for place, (start, _) in enumerate(bounds):
            encoded = pending.result()
            if place + 1 < len(bounds):
                following, stop = bounds[place + 1]
                pending = pool.submit(encode, items[following:stop], first_index=following)
            yield start, encoded


def run_ahead(
    windows: Iterable[Item], run: Callable[[Item, threading.Event], Answer], *, ahead: int
) -> Generator[tuple[Item, Answer], None, None]:
    """Yield each window with its answer, in order, while up to ``ahead`` further ones run in threads of their own.

    A device that answers faster than its caller thinks would else wait at the end of each window: for the last batch,
    for what the caller makes of the answer, for the plan of the next window.

    Args:
        windows: What is run.
        run: Runs one; the event is set when nobody waits for its answer any more.
        ahead: 0 runs each in the caller's thread.
    """
    stopped = threading.Event()
    if ahead == 0:
        for window in windows:
            yield window, run(window, stopped)
        return
    with ThreadPoolExecutor(ahead + 1, thread_name_prefix="poolgraph-window") as pool:
        under_way: deque[tuple[Item, Future[Answer]]] = deque()
        try:
            for window in windows:
                under_way.append((window, pool.submit(run, window, stopped)))
                if len(under_way) > ahead:
                    first, answer = under_way.popleft()
                    yield first, answer.result()
            while under_way:
                first, answer = under_way.popleft()
                yield first, answer.result()
        finally:
            stopped.set()


def plan_windows(num_items: int, first: int, most: int) -> list[tuple[int, int]]:
    """Return where windows begin and end: the first of ``first`` items, each twice the one before, up to ``most``."""
    bounds, start, size = [], 0, first
    while start < num_items:
        bounds.append((start, min(start + size, num_items)))
        start, size = start + size, min(2 * size, most)
    return bounds
