"""``buckets.json``: the buckets that ``poolgraph plan`` chose for a user's texts, beside an artifact or anywhere else.

Beside an artifact, the file is no part of it, like ``tuning.json``: its manifest does not list it, and without it the
buckets are those of ``bucket_planner.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import UNREADABLE, Positive
from poolgraph.runtime.bucket_planner import BucketBudget, plan_buckets
from poolgraph.runtime.buckets import Bucket, order_buckets, trim_bucket

BUCKETS_FILE: Final = "buckets.json"

LAYOUTS: Final[tuple[Literal["padded", "packed"], ...]] = ("padded", "packed")

LARGEST_BYTES: Final = 1 << 20


class _Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bucket, as in ``Bucket``."""

    max_length: Positive
    batch_size: Positive
    num_tokens: Positive | None = None


class _BucketFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file: the buckets by layout."""

    format_version: Literal[1] = 1
    buckets: dict[Literal["padded", "packed"], tuple[_Shape, ...]]


def encode_buckets(buckets: Sequence[Bucket]) -> bytes:
    """Encode buckets, of one layout or both, as indented JSON with a final newline."""
    rows: dict[Literal["padded", "packed"], tuple[_Shape, ...]] = {
        layout: tuple(
            _Shape(max_length=bucket.max_length, batch_size=bucket.batch_size, num_tokens=bucket.num_tokens)
            for bucket in buckets
            if bucket.layout == layout
        )
        for layout in LAYOUTS
        if any(bucket.layout == layout for bucket in buckets)
    }
    return msgspec.json.format(msgspec.json.encode(_BucketFile(buckets=rows)), indent=2) + b"\n"


def read_buckets(path: Path) -> tuple[Bucket, ...]:
    """Read a file of buckets, of both layouts.

    Raises:
        InputError: no such file, or not one that ``poolgraph plan`` writes.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES} bytes")
        shapes = msgspec.json.decode(path.read_bytes(), type=_BucketFile).buckets
        buckets = tuple(_build_bucket(layout, shape) for layout, rows in shapes.items() for shape in rows)
    except (*UNREADABLE, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be used as buckets: {error}; write one with `poolgraph plan FILE --model DIR -o {path}`",
            parameter="buckets",
        ) from error
    return buckets


def load_buckets(
    given: str | Path | Sequence[Bucket] | None, *, directory: Path, layout: str, budget: BucketBudget
) -> tuple[Bucket, ...]:
    """Return the buckets to run a variant in, largest first; none is longer than the model's longest text.

    Args:
        given: A file, or the buckets themselves; None takes the file beside the artifact, else those planned for
            ``budget`` without knowledge of any texts.
        directory: The artifact's.
        layout: The variant's.
        budget: What planned buckets may cost.

    Raises:
        InputError: a file that cannot be used, no buckets, or none of this layout among them.
    """
    if given is None:
        stored = _read_stored(directory / BUCKETS_FILE, layout)
        return _trim(stored, budget) if stored else plan_buckets(budget, layout)
    buckets = read_buckets(Path(given)) if isinstance(given, str | Path) else _check_buckets(given)
    own = tuple(bucket for bucket in buckets if bucket.layout == layout)
    if not own:
        raise InputError(
            f"there are buckets of the layouts {sorted({b.layout for b in buckets})}, and the variant runs in the "
            f"{layout} one; plan them with `poolgraph plan FILE --layout {layout}`",
            parameter="buckets",
        )
    return _trim(own, budget)


def _check_buckets(given: object) -> tuple[Bucket, ...]:
    if not isinstance(given, Sequence) or not all(isinstance(bucket, Bucket) for bucket in given):
        raise InputError(
            f"buckets must be a file of `poolgraph plan` or a sequence of Bucket, not {given!r:.80}",
            parameter="buckets",
        )
    return tuple(given)


def _trim(buckets: Sequence[Bucket], budget: BucketBudget) -> tuple[Bucket, ...]:
    return order_buckets([trim_bucket(bucket, budget.max_model_len) for bucket in buckets])


def _read_stored(path: Path, layout: str) -> tuple[Bucket, ...]:
    """Return the stored buckets of a layout, none where there are none; warn of a file that cannot be used."""
    if not path.exists():
        return ()
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"{path} is a link that leaves the artifact")
        return order_buckets([bucket for bucket in read_buckets(path) if bucket.layout == layout])
    except InputError as error:
        warnings.warn(f"{error}. Buckets are planned without it.", UserWarning, stacklevel=6)
        return ()


def _build_bucket(layout: str, shape: _Shape) -> Bucket:
    bucket = Bucket(max_length=shape.max_length, batch_size=shape.batch_size, num_tokens=shape.num_tokens)
    if bucket.layout != layout:
        raise ValueError(f"{bucket} is a {bucket.layout} bucket and stands among the {layout} ones")
    return bucket
