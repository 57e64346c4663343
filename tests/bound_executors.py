"""Executors of hand-made graphs in buckets, what they must answer, and runs that fail."""

from __future__ import annotations

import numpy as np
from bound_graphs import build_variant, reference, reference_rows

from poolgraph.errors import SessionError
from poolgraph.runtime.bound_executor import BoundExecutor
from poolgraph.runtime.bound_slot import BoundSlot
from poolgraph.runtime.buckets import Bucket, packed_bucket
from poolgraph.runtime.provider_options import ProviderSettings
from poolgraph.runtime.session import SessionPool

BUCKETS = {
    "padded": (
        Bucket(max_length=32, batch_size=4),
        Bucket(max_length=8, batch_size=16),
        Bucket(max_length=32, batch_size=1),
    ),
    "packed": (packed_bucket(128, 32, 16), packed_bucket(32, 32, 4)),
}


def build_executor(directory, layout, device, buckets=None, **changes):
    """An executor on a device, a row of ``DEVICES``; keywords replace its fields."""
    provider, name = device
    variant = build_variant(directory, layout, (provider,))
    own = BUCKETS[layout] if buckets is None else buckets
    uses_graphs = name == "cuda"
    sessions = SessionPool(
        directory=directory,
        variant=variant,
        provider=provider,
        settings=ProviderSettings(buckets=own, uses_graphs=uses_graphs),
    )
    return BoundExecutor(
        sessions=sessions, buckets=own, device=name, pad_token_id=0, **({"uses_graphs": uses_graphs} | changes)
    )


def assert_answers(executor, texts):
    found = executor.run_sequence(texts)
    np.testing.assert_allclose(found, np.stack([reference(text) for text in texts]), atol=1e-5)
    for rows, text in zip(executor.run_token(texts), texts, strict=True):
        np.testing.assert_allclose(rows, reference_rows(text), atol=1e-5)


def fail_on(monkeypatch, fails, message="Failed to allocate memory for requested buffer of size 1073741824"):
    run = BoundSlot.run

    def maybe(slot):
        if fails(slot.bucket):
            raise SessionError(message)
        run(slot)

    monkeypatch.setattr(BoundSlot, "run", maybe)
