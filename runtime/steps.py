"""STEP pooling of process rewards: the columns asked for, then the rows of the step tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest, Pooler

_MOST_NAMED: Final = 20


def resolve_columns(pooler: Pooler, returned_token_ids: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the columns of the token logits that a request gets, None for all of them.

    Args:
        pooler: The artifact's pooler, a STEP one.
        returned_token_ids: What the request says: vocabulary ids where the head was cut out of a language-model head,
            else columns counted from 0. None does as the pooler says; an empty list means all.

    Raises:
        InputError: not a list of ints, or ids that the head has no column for.
    """
    ids = pooler.returned_token_ids if returned_token_ids is None else _check_ids(returned_token_ids)
    if not ids:
        return None
    known = pooler.column_token_ids or range(pooler.token_embedding_size or pooler.embedding_size)
    if missing := [token_id for token_id in ids if token_id not in known]:
        raise InputError(
            f"returned_token_ids {_name(missing)} are no columns of this model: {_describe(pooler, known)}; "
            "choose from these, or leave returned_token_ids out to get all columns",
            parameter="returned_token_ids",
            value=list(ids),
        )
    return tuple(known.index(token_id) for token_id in ids)


def resolve_step_tag(manifest: Manifest, step_tag_id: int | None) -> int | None:
    """Return the token whose rows a request gets, None for all rows.

    Args:
        manifest: The artifact's manifest, with a STEP pooler.
        step_tag_id: What the request says; None does as the pooler says.

    Raises:
        InputError: not an int, or an id outside the vocabulary.
    """
    if step_tag_id is None:
        return manifest.pooler.step_tag_id
    (token_id,) = _check_ids((step_tag_id,), "step_tag_id")
    if not 0 <= token_id < manifest.limits.vocab_size:
        raise InputError(
            f"step_tag_id {token_id} is out of vocabulary: ids run from 0 to {manifest.limits.vocab_size - 1}",
            parameter="step_tag_id",
            value=token_id,
        )
    return token_id


def select_steps(
    rows: NDArray[np.float32],
    input_ids: NDArray[np.int64],
    *,
    step_tag_id: int | None,
    columns: Sequence[int] | None,
) -> NDArray[np.float32]:
    """Take columns, then the rows of the step tag.

    Args:
        rows: (num_tokens, size), left as they are.
        input_ids: (num_tokens,).
        step_tag_id: Token whose rows are kept; None keeps all.
        columns: Indices of columns in the order wanted; None keeps all.

    Returns:
        (num_rows, num_columns), without rows where the text has no step tag.
    """
    chosen = rows if columns is None else rows[:, list(columns)]
    return chosen if step_tag_id is None else chosen[input_ids == step_tag_id]


def _check_ids(ids: Sequence[int], parameter: str = "returned_token_ids") -> tuple[int, ...]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence | np.ndarray):
        raise InputError(f"{parameter} must be a list of ints, not {type(ids).__name__}", parameter=parameter)
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int | np.integer):
            raise InputError(f"{parameter} must be int, not {type(token_id).__name__}", parameter=parameter, value=ids)
    return tuple(int(token_id) for token_id in ids)


def _describe(pooler: Pooler, known: Sequence[int]) -> str:
    if pooler.column_token_ids:
        return f"its columns are the tokens {_name(known)}"
    return f"it has {len(known)}, counted from 0 to {len(known) - 1}"


def _name(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_MOST_NAMED]))
    return f"[{shown}]" if len(ids) <= _MOST_NAMED else f"[{shown}, ...] ({len(ids)} in all)"
