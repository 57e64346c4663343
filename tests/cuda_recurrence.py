"""The recurrences of the CUDA graphs in numpy: linear attention, of which Mamba's scan is a case, and convolution."""

from __future__ import annotations

import numpy as np
from cuda_norms import sigmoid
from cuda_operator import ContribOp


def widen(rows):
    """Return numbers in float64: what a recurrence rounds, it multiplies at every later token."""
    return np.asarray(rows, np.float64)


GATED = ("gated", "gated_delta")
DELTA = ("delta", "gated_delta")


class LinearAttention(ContribOp):
    """State of (key size, value size) a head, token by token; its rules are those of the operator's schema."""

    def _run(
        self,
        query,
        key,
        value,
        past_state=None,
        decay=None,
        beta=None,
        *,
        q_num_heads,
        kv_num_heads,
        update_rule="gated_delta",
        scale=0.0,
        chunk_size=64,
        state_window=0,
    ):
        self.refuse(bool(state_window), "state_window", "pooling models keep no state")
        known = ("linear", *GATED, "delta")
        self.refuse(update_rule not in known, f"update_rule {update_rule}", f"one of {known}")
        self.refuse(
            (update_rule in GATED) != (decay is not None), f"decay with {update_rule}", "the gated rules have it"
        )
        self.refuse((update_rule in DELTA) != (beta is not None), f"beta with {update_rule}", "the delta rules have it")

        def heads(rows, count):
            return widen(rows).reshape(*rows.shape[:2], count, -1)

        queries, keys, values = heads(query, q_num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
        gate = None if decay is None else np.exp(heads(decay, kv_num_heads))
        rate = None if beta is None else np.broadcast_to(widen(beta), (*beta.shape[:2], kv_num_heads))
        scale = np.float32(scale or queries.shape[-1] ** -0.5)
        wide = max(q_num_heads, kv_num_heads)
        state = np.zeros((len(query), kv_num_heads, keys.shape[-1], values.shape[-1]))
        if past_state is not None:
            state = widen(past_state)
        result = np.empty((*query.shape[:2], wide, values.shape[-1]))
        for step in range(query.shape[1]):
            if gate is not None:
                state = state * gate[:, step, :, :, None]
            written = values[:, step]
            if rate is not None:
                written = (written - np.einsum("bhkv,bhk->bhv", state, keys[:, step])) * rate[:, step, :, None]
            state = state + keys[:, step, :, :, None] * written[:, :, None, :]
            seen = state.repeat(wide // kv_num_heads, axis=1)
            asked = queries[:, step].repeat(wide // q_num_heads, axis=1)
            result[:, step] = np.einsum("bhkv,bhk->bhv", seen, asked) * scale
        kept = state.astype(query.dtype if past_state is None else past_state.dtype)
        return result.reshape(*query.shape[:2], -1).astype(query.dtype), kept


class CausalConvWithState(ContribOp):
    """Each channel's convolution with what is to the left of a token and the token itself."""

    def _run(
        self,
        rows,
        weight,
        bias=None,
        past_state=None,
        ndim=1,
        activation="none",
        dilation=1,
        channels_last=0,
        state_window=0,
    ):
        self.refuse(ndim != 1, f"ndim {ndim}", "CUDA's kernel has one axis")
        self.refuse(bool(state_window), "state_window", "pooling models keep no state")
        self.refuse(activation not in ("none", "silu", "swish"), f"activation {activation}", "none, silu or swish")
        wide = widen(rows).swapaxes(1, 2) if channels_last else widen(rows)  # (batch_size, channels, length)
        taps = weight.shape[2]
        reach = (taps - 1) * dilation
        past = np.zeros((*wide.shape[:2], reach))
        if past_state is not None:
            past = widen(past_state).swapaxes(1, 2) if channels_last else widen(past_state)
        padded = np.concatenate([past, wide], axis=2)
        length = wide.shape[2]
        shifted = [padded[..., tap * dilation : tap * dilation + length] for tap in range(taps)]
        result = sum(widen(weight)[:, 0, tap, None] * part for tap, part in enumerate(shifted))
        if bias is not None:
            result = result + widen(bias)[:, None]
        if activation != "none":
            result = result * sigmoid(result)
        kept = padded[..., padded.shape[2] - reach :]
        if channels_last:
            result, kept = result.swapaxes(1, 2), kept.swapaxes(1, 2)
        return tuple(np.ascontiguousarray(array.astype(rows.dtype)) for array in (result, kept))


OPERATORS = (LinearAttention, CausalConvWithState)
