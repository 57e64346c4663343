"""Raw answers kept in memory, by the tokens that they are of.

What is kept is what the graph says of a text, before anything is finished: requests that differ in dimensions, norm or
activation share one entry, and a hit goes through the same finishing as a fresh answer, so it has the same bits. Keyed
by token ids, a text and its own token ids share an entry too, and so do texts that the tokenizer reads alike; the price
is that a hit still tokenizes, which takes a small part of what a run takes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.tasks import RunFamily

Key: TypeAlias = bytes
Row: TypeAlias = NDArray[np.float32]

_ENTRY_BYTES: Final = 256
"""Roughly what Python takes for an entry beside its numbers."""

_VALUE_BYTES: Final = 4

_LARGEST_SHARE: Final = 8
"""An answer larger than this part of the cache is not kept: it would push out too many others."""


def make_key(salt: bytes, family: RunFamily, text: EncodedText) -> Key:
    """Return the key of a text's raw answer: everything that the graph is fed, and whose graph it is.

    Args:
        salt: Names the artifact and the variant.
        family: The graph.
        text: The text.
    """
    digest = blake2b(salt, digest_size=20)
    digest.update(b"%b:%d:%d:" % (family.encode(), len(text.input_ids), text.prompt_length))
    digest.update(text.input_ids.tobytes())
    for name, part in ((b"types", text.token_type_ids), (b"attended", text.attended)):
        if part is not None:
            digest.update(name)
            digest.update(part.tobytes())
    return digest.digest()


class AnswerCache:
    """Raw answers, those used longest ago given up first; safe to use from several threads.

    Args:
        capacity: Bytes that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: OrderedDict[Key, Row] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return self._size

    def find(self, keys: Sequence[Key]) -> list[Row | None]:
        """Return the answer of each key, None where there is none; they are not to be written to."""
        with self._lock:
            found = [self._rows.get(key) for key in keys]
            for key, row in zip(keys, found, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        return found

    def keep(self, key: Key, row: Row) -> None:
        """Keep a copy of an answer, unless it is too large."""
        if row.size * _VALUE_BYTES + _ENTRY_BYTES > self._capacity // _LARGEST_SHARE:
            return
        kept = np.array(row, dtype=np.float32)
        kept.flags.writeable = False
        with self._lock:
            if key in self._rows:
                return
            self._rows[key] = kept
            self._size += kept.nbytes + _ENTRY_BYTES
            while self._size > self._capacity:
                _, old = self._rows.popitem(last=False)
                self._size -= old.nbytes + _ENTRY_BYTES
