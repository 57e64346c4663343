"""From a graph's raw answer to the embedding asked for: shortened, normalized."""

from __future__ import annotations

from numbers import Integral

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.sparse import MIN_NORM, keep_largest


def check_dimensions(manifest: Manifest, dimensions: int | None, model: str) -> None:
    """Check that the artifact's embeddings may be shortened to ``dimensions``.

    Raises:
        InputError: not an int, the model is no Matryoshka model, or its width or list of widths does not have
            ``dimensions``.
    """
    if dimensions is None:
        return
    if isinstance(dimensions, bool) or not isinstance(dimensions, Integral):
        raise InputError(
            f"dimensions must be an int, not {type(dimensions).__name__}", parameter="dimensions", value=dimensions
        )
    pooler = manifest.pooler
    if not pooler.is_matryoshka:
        problem = (
            f"does not support Matryoshka embeddings; dimensions must be unset (received dimensions={dimensions})."
        )
    elif pooler.matryoshka_dimensions:
        if dimensions in pooler.matryoshka_dimensions:
            return
        problem = f"only supports Matryoshka dimensions {list(pooler.matryoshka_dimensions)}, got {dimensions}."
    elif 1 <= dimensions <= pooler.embedding_size:
        return
    else:
        problem = f"only supports dimensions in range [1, {pooler.embedding_size}], got {dimensions}."
    raise InputError(f"Model {model!r} {problem}", parameter="dimensions", value=dimensions)


def at_token_width(manifest: Manifest) -> Manifest:
    """Return the manifest with the width of token embeddings as the one that ``check_dimensions`` looks at."""
    width = manifest.pooler.token_embedding_size
    if width is None:
        return manifest
    return msgspec.structs.replace(manifest, pooler=msgspec.structs.replace(manifest.pooler, embedding_size=width))


def choose_norm(manifest: Manifest, normalize: bool | None) -> bool:
    """Return whether embeddings are divided by their norm; None does as the model says.

    Raises:
        InputError: not a bool.
    """
    if normalize is not None and not isinstance(normalize, bool | np.bool_):
        raise InputError(
            f"normalize must be a bool, not {type(normalize).__name__}", parameter="normalize", value=normalize
        )
    return manifest.pooler.normalize if normalize is None else bool(normalize)


def divides_kept(manifest: Manifest, normalize: bool | None) -> bool:
    """Return whether the norm that sparse embeddings are divided by is that of the weights that are kept.

    It is where a caller asks for it, of the export, of ``LLM`` or of a request, who expects embeddings of length 1.
    The model's own is of all weights: sentence-transformers' Normalize comes before the smaller ones are left out.
    """
    return manifest.pooler.normalize_kept if normalize is None else bool(normalize)


def finish_embeddings(
    raw: NDArray[np.float32],
    *,
    normalize: bool,
    dimensions: int | None,
    max_active_dims: int | None = None,
    to_unit: bool = False,
) -> NDArray[np.float32]:
    """Shorten to ``dimensions``, divide by the L2 norm, keep the largest; a row's bits do not depend on other rows.

    Args:
        raw: (..., embedding_size), left as it is.
        normalize: Whether to divide each row by its norm.
        dimensions: Leading values kept, None for all.
        max_active_dims: The largest values of sparse rows that are kept, None for all.
        to_unit: Whether the norm is that of what is kept, see ``divides_kept``.

    Returns:
        A new array (..., dimensions).
    """
    # A contiguous copy: numpy sums a strided row in another order than a contiguous one.
    answer = np.array(raw[..., :dimensions], dtype=np.float32, order="C")
    if normalize and to_unit:
        answer = keep_largest(answer, max_active_dims)
    if normalize:
        norm = np.sqrt(np.square(answer, dtype=np.float64).sum(axis=-1, keepdims=True))
        answer /= np.maximum(norm, MIN_NORM).astype(np.float32)
    return keep_largest(answer, max_active_dims)


def finish_by_default(
    raw: NDArray[np.float32], manifest: Manifest, max_active_dims: int | None = None
) -> NDArray[np.float32]:
    """Finish the raw answers of a request that does not say how: as the model says.

    Args:
        raw: (..., embedding_size), left as it is.
        manifest: The model's.
        max_active_dims: The largest values of sparse rows that are kept; None does as the model says, too.
    """
    pooler = manifest.pooler
    return finish_embeddings(
        raw,
        normalize=pooler.normalize,
        dimensions=None,
        max_active_dims=max_active_dims or pooler.max_active_dims,
        to_unit=pooler.normalize_kept,
    )
