"""Keeps the cores busy: batches side by side, the next window of texts tokenized meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

WINDOW_TEXTS: Final = 4096
"""Texts tokenized and planned together: bounds memory, and is enough for batches of equal length to fill."""

Item = TypeVar("Item")
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
    items: Sequence[Item], encode: EncodeWindow[Item, Encoded], *, window: int = WINDOW_TEXTS
) -> Generator[tuple[int, Sequence[Encoded]], None, None]:
    """Yield ``(first_index, encoded items)`` window by window; the next one is tokenized while the caller works.

    At most two windows are held at a time. No thread is started for a single window.
    """
    if len(items) <= window:
        yield 0, encode(items, first_index=0)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="poolgraph-tokenize") as pool:
        starts = range(0, len(items), window)
        pending = pool.submit(encode, items[:window], first_index=0)
        for start in starts:
            encoded = pending.result()
            following = start + window
            if following < len(items):
                pending = pool.submit(encode, items[following : following + window], first_index=following)
            yield start, encoded
