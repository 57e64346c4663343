"""The slots of one graph: a bounded number alive, the least recently used makes place for a new shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from poolgraph.runtime.bound_slot import NO_GRAPH, BoundSlot
from poolgraph.runtime.buckets import Bucket

UNPLANNED_SLOTS: Final = 4
"""Slots for shapes that are not planned: texts beyond all buckets, halves of batches that no memory was left for."""

_FAVOURED_SHARE: Final = 2


@dataclass(slots=True, kw_only=True, eq=False)
class SlotPool:
    """Hands out slots; safe to use from several threads.

    A bucket of at least half the largest one's tokens has two slots, so that a batch is staged while the one before it
    runs. Batches of smaller ones seldom follow one another, and each slot costs a CUDA graph.

    Attributes:
        build: Makes a slot of ``bucket`` with ``graph_id``, its ``gpu_graph_id``.
        dispose: Lets go of a slot's CUDA graph, wherever that must happen.
        planned: Buckets that have CUDA graphs; others run without, since their shapes may never come again.
        uses_graphs: Whether there are CUDA graphs at all.
    """

    build: Callable[..., BoundSlot]
    dispose: Callable[[BoundSlot], None]
    planned: Collection[Bucket]
    uses_graphs: bool
    _idle: list[BoundSlot] = field(default_factory=list, init=False)
    _discarded: set[Bucket] = field(default_factory=set, init=False)
    _num_slots: dict[Bucket, int] = field(default_factory=dict, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _graph_ids: count[int] = field(default_factory=lambda: count(1), init=False)

    @property
    def max_slots(self) -> int:
        """How many slots are alive at most."""
        return sum(self.depth(bucket) for bucket in self.planned) + UNPLANNED_SLOTS

    @property
    def num_slots(self) -> int:
        """How many are alive."""
        return sum(self._num_slots.values())

    def depth(self, bucket: Bucket) -> int:
        """Return how many slots a bucket may have."""
        largest = max((planned.size for planned in self.planned), default=0)
        return 2 if bucket.size * _FAVOURED_SHARE >= largest else 1

    def acquire(self, bucket: Bucket, *, wait: bool) -> BoundSlot | None:
        """Return a slot of a bucket for the caller's own use, made now if there are too few.

        Args:
            bucket: The shape.
            wait: Wait until one is free. A caller that holds slots must not: it returns None then, and the caller ends
                one of its own batches first. So no two callers wait for each other.

        Raises:
            SessionError: the device refused the buffers.
        """
        with self._changed:
            while True:
                idle = [slot for slot in self._idle if slot.bucket == bucket]
                if idle:
                    self._idle.remove(idle[-1])
                    return idle[-1]
                evicted = self._make_place(bucket)
                if evicted is not None:
                    break
                if not wait:
                    return None
                self._changed.wait()
            self._num_slots[bucket] = self._num_slots.get(bucket, 0) + 1
        return self._build(bucket, evicted)

    def release(self, slot: BoundSlot) -> None:
        """Give a slot back."""
        with self._changed:
            is_kept = slot.bucket not in self._discarded
            if is_kept:
                self._idle.append(slot)
                self._changed.notify_all()
        if not is_kept:
            self.drop(slot)

    def drop(self, slot: BoundSlot) -> None:
        """Give a slot back that failed and is not to be used again."""
        try:
            self.dispose(slot)
        finally:
            self._forget(slot.bucket)

    def discard(self, bucket: Bucket) -> None:
        """Let go of the slots of a bucket that is not used any more, now or when they are given back."""
        with self._changed:
            self._discarded.add(bucket)
            idle = [slot for slot in self._idle if slot.bucket == bucket]
            self._idle = [slot for slot in self._idle if slot.bucket != bucket]
        for slot in idle:
            self.drop(slot)

    def clear(self) -> None:
        """Let go of the slots that are idle; their CUDA graphs go with the session."""
        with self._changed:
            for slot in self._idle:
                self._uncount(slot.bucket)
            self._idle.clear()
            self._changed.notify_all()

    def _build(self, bucket: Bucket, evicted: list[BoundSlot]) -> BoundSlot:
        try:
            while evicted:
                self.dispose(evicted.pop())  # and held no more: its buffers make place for the new ones
            graph_id = next(self._graph_ids) if self.uses_graphs and bucket in self.planned else NO_GRAPH
            return self.build(bucket=bucket, graph_id=graph_id)
        except BaseException:
            self._forget(bucket)
            raise

    def _forget(self, bucket: Bucket) -> None:
        with self._changed:
            self._uncount(bucket)
            self._changed.notify_all()

    def _make_place(self, bucket: Bucket) -> list[BoundSlot] | None:
        """Return the slots to let go of for a new one of this bucket; None if it must wait for one to become idle."""
        if self._num_slots.get(bucket, 0) >= self.depth(bucket):
            return None
        if self.num_slots < self.max_slots:
            return []
        if not self._idle:
            return None
        # Idle slots are in the order of their last use.
        unplanned = [slot for slot in self._idle if slot.bucket not in self.planned]
        oldest = (unplanned or self._idle)[0]
        self._idle.remove(oldest)
        self._uncount(oldest.bucket)
        return [oldest]

    def _uncount(self, bucket: Bucket) -> None:
        self._num_slots[bucket] -= 1
        if not self._num_slots[bucket]:
            del self._num_slots[bucket]
