"""The attention operators of the CUDA graphs in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from cuda_norms import root_mean_square
from cuda_operator import ContribOp, garbage, widen
from cuda_rotary import rotate


def split_heads(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """(batch_size, sequence_length, num_heads * head_dim) to (batch_size, num_heads, sequence_length, head_dim)."""
    return rows.reshape(*rows.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)


def merge_heads(rows: np.ndarray) -> np.ndarray:
    return rows.transpose(0, 2, 1, 3).reshape(rows.shape[0], rows.shape[2], -1)


def attend(query, key, value, visible, *, scale, bias=None, softcap=0.0, sink=None):
    """Attention over split heads; ``visible`` is broadcastable to the scores. A row that sees nothing is 0.

    A key that is not seen has the weight 0, by which its value is still multiplied: NaN there is NaN here, as in
    kernels that work in tiles.
    """
    scores = query @ key.transpose(0, 1, 3, 2) * np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    if bias is not None:
        scores = scores + bias
    scores = np.where(visible, scores, -np.inf)
    highest = scores.max(-1, keepdims=True)
    if sink is not None:
        highest = np.maximum(highest, sink[:, None, None])
    highest = np.where(np.isneginf(highest), 0, highest)
    weights = np.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink[:, None, None] - highest)
    return weights / np.where(total == 0, 1, total) @ value


class MultiHeadAttention(ContribOp):
    def _run(
        self,
        query,
        key=None,
        value=None,
        bias=None,
        key_padding_mask=None,
        attention_bias=None,
        *others,
        num_heads,
        scale=None,
        unidirectional=0,
        mask_filter_value=None,
    ):
        self._check(query, key, value, bias, key_padding_mask, unidirectional, others)
        queries, keys, values = (split_heads(widen(rows), num_heads) for rows in (query, key, value))
        length, kv_length = query.shape[1], key.shape[1]
        lengths = np.full(len(query), kv_length) if key_padding_mask is None else key_padding_mask
        visible = np.arange(kv_length) < lengths[:, None, None, None]
        if unidirectional:
            visible = visible & np.tri(length, kv_length, dtype=bool)
        scale = scale or queries.shape[-1] ** -0.5
        rows = merge_heads(attend(queries, keys, values, visible, scale=scale, bias=widen(attention_bias)))
        if self.poison:
            padding = np.arange(length) >= lengths[:, None] if length == kv_length else (lengths == 0)[:, None]
            rows = np.where(padding[..., None], garbage(rows.shape), rows)
        return (rows.astype(query.dtype),)

    def _check(self, query, key, value, bias, key_padding_mask, unidirectional, others):
        self.refuse(key is None or value is None, "packed query, key and value", "the kernel copies them apart")
        self.refuse(bias is not None, "bias", "the kernel copies query, key and value to add it")
        self.refuse(any(it is not None for it in others), "a past", "pooling models have none")
        self.refuse(query.ndim != 3 or key.ndim != 3, "query or key not of three axes", "it is another layout")
        if key_padding_mask is not None:
            wrong = key_padding_mask.shape != (len(query),) or key_padding_mask.dtype != np.int32
            found = f"key_padding_mask of {key_padding_mask.dtype}{list(key_padding_mask.shape)}"
            self.refuse(wrong, found, "only int32 lengths, (batch_size,), run on a fast kernel")
            self.refuse(key_padding_mask.min() < 0 or key_padding_mask.max() > key.shape[1], "lengths", "out of range")
        unequal = bool(unidirectional) and query.shape[1] != key.shape[1]
        self.refuse(unequal, "unidirectional with other lengths of query and key", "kernels align it differently")


class GroupQueryAttention(ContribOp):
    """Prompts without a past: a query sees the keys of its own text up to itself."""

    def _run(
        self,
        query,
        key=None,
        value=None,
        past_key=None,
        past_value=None,
        seqlens_k=None,
        total_sequence_length=None,
        cos_cache=None,
        sin_cache=None,
        position_ids=None,
        attention_bias=None,
        head_sink=None,
        k_scale=None,
        v_scale=None,
        q_norm_weight=None,
        k_norm_weight=None,
        *,
        num_heads,
        kv_num_heads,
        scale=None,
        softcap=0.0,
        local_window_size=-1,
        do_rotary=0,
        rotary_interleaved=0,
        causal=1,
        smooth_softmax=0,
        qk_norm_epsilon=1e-6,
    ):
        self._check(query, key, past_key, seqlens_k, total_sequence_length, position_ids)
        self.refuse(k_scale is not None or v_scale is not None, "k_scale or v_scale", "there is no cache to quantize")
        self.refuse(not causal and local_window_size != -1, "local_window_size with causal=0", "kernels refuse it")
        self.refuse((q_norm_weight is None) != (k_norm_weight is None), "one norm weight", "kernels want both or none")
        self.refuse(bool(do_rotary) != (cos_cache is not None), "do_rotary and cos_cache", "one needs the other")
        self.do_rotary, self.interleaved, self.epsilon = do_rotary, bool(rotary_interleaved), qk_norm_epsilon
        queries, keys, values = self._heads(query, key, value, num_heads, kv_num_heads)
        norms = (q_norm_weight, k_norm_weight)
        queries, keys = self._prepared(queries, keys, norms, (cos_cache, sin_cache), position_ids, query.dtype)
        group = num_heads // kv_num_heads
        visible = self._visible(query.shape[1], seqlens_k, causal, local_window_size)
        sink = widen(head_sink) if head_sink is not None else np.zeros(num_heads, np.float32)
        rows = attend(
            queries,
            keys.repeat(group, axis=1),
            values.repeat(group, axis=1),
            visible,
            scale=scale or queries.shape[-1] ** -0.5,
            bias=widen(attention_bias),
            softcap=softcap,
            sink=sink if smooth_softmax or head_sink is not None else None,
        )
        return self._outputs(merge_heads(rows), keys, values, seqlens_k, query.dtype)

    def _check(self, query, key, past_key, seqlens_k, total_sequence_length, position_ids):
        self.refuse(past_key is not None, "past_key", "pooling models have none")
        other = key is not None and key.shape[1] != query.shape[1]
        self.refuse(other, "key of another length than query", "cross-attention is not supported")
        for name, array, shapes in (
            ("seqlens_k", seqlens_k, [(len(query),)]),
            ("total_sequence_length", total_sequence_length, [(), (1,)]),
        ):
            found = f"{name} of {array.dtype}{list(array.shape)}"
            self.refuse(array.dtype != np.int32 or array.shape not in shapes, found, f"it is int32, one of {shapes}")
        total = int(np.asarray(total_sequence_length).reshape(-1)[0])
        length = query.shape[1]
        self.refuse(total != length, f"total_sequence_length {total} for {length} tokens", "this is no prompt")
        self.refuse(seqlens_k.min() < -1 or seqlens_k.max() >= length, f"seqlens_k {seqlens_k}", "out of range")
        if position_ids is not None:
            counted = np.array_equal(position_ids - position_ids[0, 0], np.tile(np.arange(length), (len(query), 1)))
            self.refuse(not counted, "position_ids that do not count up", "CUDA's kernel reads the first number alone")

    def _heads(self, query, key, value, num_heads, kv_num_heads):
        if key is None:
            size = query.shape[2] // (num_heads + 2 * kv_num_heads)
            bounds = [num_heads * size, (num_heads + kv_num_heads) * size]
            query, key, value = np.split(query, bounds, axis=2)
        counts = (num_heads, kv_num_heads, kv_num_heads)
        return [split_heads(widen(rows), count) for rows, count in zip((query, key, value), counts, strict=True)]

    def _prepared(self, queries, keys, norms, caches, position_ids, dtype):
        """Query and key normed and rotated, rounded to the type after each, as the kernel does."""
        multiple, size = 16 if self.do_rotary else 8, queries.shape[-1]
        self.refuse(size % multiple != 0, f"heads of {size}", f"a multiple of {multiple} is asked for")
        both = [queries, keys]
        if norms[0] is not None:
            normed = (root_mean_square(it, widen(norm), self.epsilon) for it, norm in zip(both, norms, strict=True))
            both = [widen(it.astype(dtype)) for it in normed]
        if self.do_rotary:
            positions = np.arange(queries.shape[2])[None] + (0 if position_ids is None else position_ids[0, 0])
            turned = (rotate(it, positions, *map(widen, caches), self.interleaved) for it in both)
            both = [widen(it.astype(dtype)) for it in turned]
        return both

    def _visible(self, length, seqlens_k, causal, local_window_size):
        distance = np.arange(length)[:, None] - np.arange(length)  # how far the key (column) is to the left
        visible = distance >= 0 if causal else np.ones_like(distance, dtype=bool)
        if local_window_size > 0:  # the query itself counts
            visible = visible & (distance < local_window_size)
        return visible & (np.arange(length) <= seqlens_k[:, None, None, None])

    def _outputs(self, rows, keys, values, seqlens_k, dtype):
        if self.poison:
            padding = np.arange(rows.shape[1]) > seqlens_k[:, None]
            rows = np.where(padding[..., None], garbage(rows.shape), rows)
            keys, values = (np.where(padding[:, None, :, None], garbage(it.shape), it) for it in (keys, values))
        return tuple(np.ascontiguousarray(array.astype(dtype)) for array in (rows, keys, values))


class PackedMultiHeadAttention(ContribOp):
    """Texts one after the other in one row; rows behind the last text are NaN."""

    def _run(
        self,
        query,
        key=None,
        value=None,
        bias=None,
        token_offset=None,
        cumulative_sequence_length=None,
        attention_bias=None,
        *,
        num_heads,
        scale=None,
        mask_filter_value=None,
    ):
        self._check(query, key, bias, token_offset, cumulative_sequence_length)
        rows = np.full((len(query), value.shape[1]), np.nan, np.float32)
        bounds = cumulative_sequence_length
        for index, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                continue
            text = [split_heads(widen(it[None, start:end]), num_heads) for it in (query, key, value)]
            added = attention_bias
            if added is not None:
                length = end - start
                added = widen(added[min(index, len(added) - 1)][None, :, :length, :length])
            factor = scale or text[0].shape[-1] ** -0.5
            rows[start:end] = merge_heads(attend(*text, True, scale=factor, bias=added))[0]
        return (rows.astype(query.dtype),)

    def _check(self, query, key, bias, token_offset, bounds):
        self.refuse(query.dtype.name == "bfloat16", "bfloat16", "the kernel has float16 and float32")
        self.refuse(key is None, "packed query, key and value", "the fast kernel needs 513 tokens for it")
        self.refuse(bias is not None, "bias", "the kernel copies query, key and value to add it")
        wrong = token_offset.dtype != np.int32 or token_offset.ndim != 2 or bounds.dtype != np.int32 or bounds.ndim != 1
        self.refuse(
            wrong, "token_offset or cumulative_sequence_length", "int32, (batch_size, length), (batch_size + 1,)"
        )
        size, longest = token_offset.shape
        self.refuse(len(bounds) != size + 1, f"{len(bounds)} bounds, {size} rows of token_offset", "one more is right")
        lengths = np.diff(bounds)
        ordered = bounds[0] == 0 and lengths.min(initial=0) >= 0 and bounds[-1] <= len(query)
        self.refuse(not ordered, f"cumulative_sequence_length {bounds}", f"it rises from 0 to at most {len(query)}")
        self.refuse(
            lengths.max(initial=0) > longest, f"a text of {lengths.max(initial=0)} tokens", f"room for {longest}"
        )


class RestorePadding(ContribOp):
    """Rows of texts to their places in a padded batch, whose padding is 0."""

    def _run(self, rows, token_offset):
        self.refuse(token_offset.dtype != np.int32, f"token_offset of {token_offset.dtype}", "it is int32")
        padded = np.zeros((token_offset.size, rows.shape[1]), rows.dtype)
        padded[token_offset.reshape(-1)[: len(rows)]] = rows
        return (padded.reshape(*token_offset.shape, -1),)


OPERATORS = (MultiHeadAttention, GroupQueryAttention, PackedMultiHeadAttention, RestorePadding)
