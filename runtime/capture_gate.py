"""Keeps the CUDA calls of other threads away while a CUDA graph is captured.

ONNX Runtime captures in CUDA's global mode, in which an allocation, what frees one or a blocking copy of any thread of
the process spoils the capture. So captures are exclusive; runs, transfers and allocations share the device.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class CaptureGate:
    """Many threads at work, or one that captures; a capture that waits lets nobody else begin."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_shared = 0
        self._num_waiting = 0
        self._captures = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run, transfer, allocate or free inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures and self._num_waiting == 0)
            self._num_shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_shared -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Capture inside the block, in which no garbage is collected: a model among it would be freed by any thread."""
        with self._changed:
            self._num_waiting += 1
            try:
                self._changed.wait_for(lambda: not self._captures and self._num_shared == 0)
            finally:
                self._num_waiting -= 1
            self._captures = True
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()
            with self._changed:
                self._captures = False
                self._changed.notify_all()


GATE: Final = CaptureGate()
"""The gate of this process: all its models share the device."""
