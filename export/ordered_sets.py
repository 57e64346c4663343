"""Sets in an order of their own: equal exports are equal files, whatever the seed of Python's hashes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


class OrderedSet(set[Any]):
    """A set that is walked through in the order of its members' ``repr``."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=repr))


@contextlib.contextmanager
def ordered_sets(model: object) -> Iterator[None]:
    """Within, ``set(...)`` in the module of a model's class is ordered.

    ModernBERT and Gemma 3 compute rotary embeddings for each of ``set(config.layer_types)``: strings, whose order
    changes from process to process, and with it that of a trace's nodes.
    """
    names: dict[str, Any] = vars(sys.modules[type(model).__module__])
    if "set" in names:
        yield
        return
    names["set"] = OrderedSet
    try:
        yield
    finally:
        del names["set"]
