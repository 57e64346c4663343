"""Rotary embeddings of the CUDA graphs in numpy."""

from __future__ import annotations

import numpy as np
from cuda_operator import ContribOp, widen


def rotate(rows: np.ndarray, positions: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """Rotate (batch_size, num_heads, sequence_length, head_dim) by its positions, (batch_size or 1, sequence_length).

    Pairs are neighbours where interleaved, else half of the rotated numbers apart. A head's numbers beyond those that
    the caches, (positions, rotated / 2), have angles for stay as they are.
    """
    if positions.min() < 0 or positions.max() >= len(cos):
        raise ValueError(f"positions {positions.min()} to {positions.max()} with caches for {len(cos)}")
    half = cos.shape[1]
    turned, kept = rows[..., : 2 * half], rows[..., 2 * half :]
    left, right = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    cosine, sine = cos[positions][:, None], sin[positions][:, None]
    pairs = [left * cosine - right * sine, right * cosine + left * sine]
    together = np.stack(pairs, axis=-1).reshape(turned.shape) if interleaved else np.concatenate(pairs, axis=-1)
    return np.concatenate([together, kept], axis=-1)


class RotaryEmbedding(ContribOp):
    def _run(
        self,
        rows,
        position_ids,
        cos_cache,
        sin_cache,
        interleaved=0,
        num_heads=0,
        rotary_embedding_dim=0,
        is_packed_batching=0,
        scale=1.0,
    ):
        self.refuse(bool(is_packed_batching) or scale != 1, "is_packed_batching or scale", "no graph of ours has them")
        self.refuse(position_ids.dtype != np.int64, f"position_ids of {position_ids.dtype}", "they are int64")
        self.refuse(bool(rotary_embedding_dim) and not num_heads, "rotary_embedding_dim", "it needs num_heads")
        size = 2 * cos_cache.shape[1]
        other = rotary_embedding_dim not in (0, size)
        self.refuse(other, f"rotary_embedding_dim {rotary_embedding_dim}", f"the caches are for {size}")
        split = rows
        if rows.ndim == 3:
            heads = num_heads or rows.shape[2] // size
            split = rows.reshape(*rows.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        self.refuse(not rotary_embedding_dim and split.shape[3] != size, f"heads of {split.shape[3]}", f"not {size}")
        length = split.shape[2]
        if position_ids.ndim == 1:
            self.refuse(position_ids.shape != (1,), f"position_ids of {position_ids.shape}", "one, or one a token")
            positions = position_ids[0] + np.arange(length)[None]
        else:
            same = position_ids.shape == (len(rows), length)
            self.refuse(not same, f"position_ids of {position_ids.shape}", f"there are {(len(rows), length)} tokens")
            positions = position_ids
        turned = rotate(widen(split), positions, widen(cos_cache), widen(sin_cache), bool(interleaved))
        turned = turned if rows.ndim == 4 else turned.transpose(0, 2, 1, 3)
        return (turned.reshape(rows.shape).astype(rows.dtype),)


OPERATORS = (RotaryEmbedding,)
