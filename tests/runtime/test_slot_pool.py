"""The pool of slots: two for large buckets, a bound on all, the least recently used goes first."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace

import pytest

from poolgraph.errors import SessionError
from poolgraph.runtime.bound_slot import NO_GRAPH
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.slot_pool import UNPLANNED_SLOTS, SlotPool

LARGE, HALF, SMALL = (Bucket(max_length=8, batch_size=size) for size in (8, 4, 1))


def odd(size):
    return Bucket(max_length=100 + size, batch_size=1)


@pytest.fixture
def disposed():
    return []


@pytest.fixture
def pool(disposed):
    return SlotPool(
        build=lambda bucket, graph_id: SimpleNamespace(bucket=bucket, graph_id=graph_id),
        dispose=lambda slot: disposed.append(slot.bucket),
        planned=frozenset({LARGE, HALF, SMALL}),
        uses_graphs=True,
    )


def test_depths(pool):
    assert [pool.depth(bucket) for bucket in (LARGE, HALF, SMALL)] == [2, 2, 1]
    assert pool.max_slots == 5 + UNPLANNED_SLOTS


def test_a_slot_is_used_again(pool):
    slot = pool.acquire(SMALL, wait=True)
    assert pool.acquire(SMALL, wait=False) is None
    pool.release(slot)
    assert pool.acquire(SMALL, wait=True) is slot
    assert pool.num_slots == 1


def test_graph_ids_count_from_one_and_are_never_used_twice(pool):
    ids = [pool.acquire(bucket, wait=True).graph_id for bucket in (LARGE, LARGE, SMALL)]
    assert ids == [1, 2, 3]
    assert pool.acquire(odd(1), wait=True).graph_id == NO_GRAPH


def test_the_least_recently_used_shape_that_is_not_planned_goes(pool, disposed):
    for bucket in (LARGE, LARGE, HALF, HALF):
        pool.acquire(bucket, wait=True)
    pool.release(pool.acquire(SMALL, wait=True))
    slots = [pool.acquire(odd(size), wait=True) for size in range(UNPLANNED_SLOTS)]
    assert pool.acquire(HALF, wait=False) is None
    for slot in (slots[2], slots[0], slots[1]):
        pool.release(slot)
    pool.release(pool.acquire(odd(2), wait=True))
    assert pool.acquire(odd(50), wait=True).bucket == odd(50)
    assert disposed == [odd(0)]
    assert pool.num_slots == pool.max_slots


def test_a_planned_one_goes_when_there_is_no_other(pool, disposed):
    for size in range(pool.max_slots - 1):
        pool.acquire(odd(size), wait=True)
    pool.release(pool.acquire(SMALL, wait=True))
    pool.acquire(LARGE, wait=True)
    assert disposed == [SMALL]


def test_a_bucket_that_is_used_no_more_keeps_no_slot(pool, disposed):
    used, idle = (pool.acquire(LARGE, wait=True) for _ in range(2))
    small = pool.acquire(SMALL, wait=True)
    pool.release(small)
    pool.release(idle)
    pool.discard(LARGE)
    assert (disposed, pool.num_slots) == ([LARGE], 2)
    assert pool.acquire(SMALL, wait=False) is small
    pool.release(used)
    assert (disposed, pool.num_slots) == ([LARGE, LARGE], 1)


def test_waiting_ends_when_a_slot_comes_back(pool):
    slot = pool.acquire(SMALL, wait=True)
    found = []
    thread = threading.Thread(target=lambda: found.append(pool.acquire(SMALL, wait=True)))
    thread.start()
    pool.release(slot)
    thread.join(10)
    assert found == [slot]


def test_a_slot_that_is_dropped_makes_place(pool, disposed):
    pool.drop(pool.acquire(SMALL, wait=True))
    assert pool.num_slots == 0
    assert disposed == [SMALL]
    assert pool.acquire(SMALL, wait=False) is not None


def test_a_slot_whose_graph_cannot_be_let_go_of_makes_place_too(pool):
    def fail(slot):
        raise SessionError("no")

    pool.dispose = fail
    with pytest.raises(SessionError):
        pool.drop(pool.acquire(SMALL, wait=True))
    assert pool.num_slots == 0


def test_a_slot_that_cannot_be_built_takes_no_place(pool):
    def fail(bucket, graph_id):
        raise SessionError("no")

    pool.build = fail
    with pytest.raises(SessionError):
        pool.acquire(SMALL, wait=True)
    assert pool.num_slots == 0


def test_what_makes_place_is_held_no_more_when_the_new_slot_is_made(pool):
    """Its buffers are of the memory that the new ones need."""
    made = []

    class Slot(SimpleNamespace):
        """One that a weak reference can be had of."""

    def build(bucket, graph_id):
        alive = [one() for one in made if one() is not None]
        slot = Slot(bucket=bucket, graph_id=graph_id, num_alive=len(alive))
        made.append(weakref.ref(slot))
        return slot

    pool.build = build
    for size in range(pool.max_slots):
        pool.release(pool.acquire(odd(size), wait=True))
    assert pool.acquire(odd(100), wait=True).num_alive == pool.max_slots - 1


def test_clearing_lets_go_of_idle_slots(pool):
    held = pool.acquire(LARGE, wait=True)
    pool.release(pool.acquire(SMALL, wait=True))
    pool.clear()
    assert pool.num_slots == 1
    pool.release(held)
    assert pool.acquire(LARGE, wait=False) is held
