"""Semantic ops: what tracing keeps whole. Each has a real eager implementation and one node in the traced graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from poolgraph.errors import ExportError
from poolgraph.export.packing import current_cu_seqlens, text_index
from poolgraph.graphs.pattern import SEMANTIC_DOMAIN

ATTENTION_IMPLEMENTATION = "poolgraph"
"""The name under which our attention is registered with transformers."""

_WITHOUT_EFFECT = frozenset(
    {
        "deterministic",
        "dropout",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)
"""What models hand to every attention and what changes no answer; attention reads no positions."""

_WINDOW = "poolgraph_window"
"""Attribute of a mask: the (left, right) window that the model built it for."""

_NOTHING = (-2, -2)
"""The window of a mask that no layer can ask for: models build one for layers that their configuration turns off."""

_LEAST_REACH = 8192
"""How far a mask is asked whether it sees, at least: a mask built of other masks does not tell its window's size."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    scale: float,
    causal: bool = False,
    left_window: int = -1,
    right_window: int = -1,
    softcap: float = 0.0,
    attention_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention as one op: ``softmax(cap(q k^T * scale) + bias) v`` over the keys that a query may see.

    ``cap(s)`` is ``softcap * tanh(s / softcap)`` (Gemma 2, arXiv:2408.00118, section 2), or ``s`` where softcap is 0.
    Query heads come in groups of neighbours that share a key and value head (arXiv:2305.13245). Windows count rows;
    padding is on one side only, so that rows apart are tokens apart.

    Args:
        query: (batch_size, sequence_length, num_heads * head_dim).
        key: (batch_size, sequence_length, num_kv_heads * head_dim).
        value: The same shape as the key.
        num_heads: Heads that the query's last axis holds side by side.
        num_kv_heads: Heads of key and value, a divisor of num_heads; num_heads where None.
        scale: Factor of the scores.
        causal: A query sees itself and what is left of it: a right_window of 0.
        left_window: How many tokens to its left a query sees, itself not counted; -1 for all.
        right_window: The same to its right.
        softcap: Limit of the scores, 0 for none.
        attention_mask: (batch_size, sequence_length) of bool, False for keys that no query sees, or None.
        attention_bias: Added to the scores, (1 or batch_size, num_heads, sequence_length, sequence_length), or None.
        sinks: A number a head that takes part in the softmax of each of its queries as one more score, without a value,
            (num_heads,), or None.

    Returns:
        (batch_size, sequence_length, num_heads * head_dim); finite also where a query sees no key.

    Within ``packed`` the sequence is several texts, and a query sees the keys of its own.
    """
    attributes: dict[str, Any] = {
        "num_heads": num_heads,
        "num_kv_heads": num_heads if num_kv_heads is None else num_kv_heads,
        "scale": scale,
        "causal": int(causal or right_window == 0),
        "left_window": left_window,
        "right_window": 0 if causal else right_window,
        "softcap": softcap,
    }
    inputs = (query, key, value, attention_mask, attention_bias, current_cu_seqlens(), sinks)
    if not torch.compiler.is_exporting():
        return _eager_attention(*inputs, attributes)
    result: Tensor = torch.onnx.ops.symbolic(
        f"{SEMANTIC_DOMAIN}::Attention", inputs, attrs=attributes, dtype=query.dtype, shape=query.shape, version=1
    )
    return result


def _eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    attention_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    sinks: Tensor | None,
    attributes: dict[str, Any],
) -> Tensor:
    num_heads, num_kv_heads, softcap = (attributes[name] for name in ("num_heads", "num_kv_heads", "softcap"))
    group = num_heads // num_kv_heads
    queries, keys, values = (
        rows.view(*rows.shape[:2], count, -1).transpose(1, 2)
        for rows, count in ((query, num_heads), (key, num_kv_heads), (value, num_kv_heads))
    )
    scores = queries @ keys.repeat_interleave(group, 1).transpose(-1, -2) * attributes["scale"]
    if softcap:
        scores = (scores / softcap).tanh() * softcap
    if attention_bias is not None:
        scores = scores + attention_bias
    index = torch.arange(query.shape[1], device=query.device)
    visible = _visible(index[None, :] - index[:, None], attributes["left_window"], attributes["right_window"])
    if cu_seqlens is not None:
        text = text_index(cu_seqlens, query.shape[1])
        visible = visible.logical_and(text[None, :] == text[:, None])
    if attention_mask is not None:
        visible = visible.logical_and(attention_mask[:, None, None, :])
    scores = scores.masked_fill(visible.logical_not(), torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1) if sinks is None else _sunk_softmax(scores, sinks.view(-1, 1, 1))
    rows: Tensor = weights @ values.repeat_interleave(group, 1)
    return rows.transpose(1, 2).flatten(2)


def _sunk_softmax(scores: Tensor, sinks: Tensor) -> Tensor:
    """Return the softmax over the scores and one sink a head, (num_heads, 1, 1), without the sink's share.

    Were the sink a column beside the scores, no CUDA graph could hold how they are joined.
    """
    highest = torch.maximum(scores.amax(-1, keepdim=True), sinks)
    powers = (scores - highest).exp()
    return powers / (powers.sum(-1, keepdim=True) + (sinks - highest).exp())


def _visible(distance: Tensor, left_window: int, right_window: int) -> Tensor:
    """Return whether a query sees a key, given how far the key is to its right; of bool, in the distance's shape."""
    visible = torch.ones_like(distance, dtype=torch.bool)
    if left_window >= 0:
        visible = visible.logical_and(distance >= -left_window)
    return visible.logical_and(distance <= right_window) if right_window >= 0 else visible


def register_attention() -> None:
    """Register our attention and its mask with transformers, so that models built with it trace to one op a layer."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_IMPLEMENTATION, _interface_attention)
    AttentionMaskInterface.register(ATTENTION_IMPLEMENTATION, _interface_mask)


def _interface_mask(
    *_args: Any,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Tensor] | None = None,
    local_size: int | None = None,
    **_kwargs: Any,
) -> Tensor | None:
    """Hand the padding mask through, (batch_size, sequence_length), with a note of the window that it stands for.

    Without padding there is no tensor for the note, and ``mask_function`` depends on traced positions; the layout with
    padding, which every export traces, is checked.
    """
    if attention_mask is None or mask_function is None:
        return attention_mask
    noted = attention_mask.clone()  # masks of several kinds may share one tensor
    setattr(noted, _WINDOW, _read_window(mask_function, max(local_size or 0, _LEAST_REACH)))
    return noted


def _read_window(mask_function: Callable[..., Tensor], reach: int) -> tuple[int, int]:
    """Return how far left and right the model's own mask sees, -1 for all, by asking it up to ``reach`` tokens away.

    Raises:
        ExportError: The mask is no window: it differs by query or depends on the texts.
    """
    middle, size = reach + 3, 2 * reach + 8
    try:
        with _disable_current_modes():
            keys = torch.arange(size)[None, :]
            queries = torch.tensor([0, 1, middle, middle + 1, size - 1])[:, None]
            zero = torch.zeros(1, 1, dtype=torch.int64)
            seen = torch.as_tensor(mask_function(zero, zero, queries, keys)).expand(len(queries), size)
            row = seen[2].nonzero().flatten()
            if not seen.any():
                return _NOTHING
            left = -1 if row[0] == 0 else middle - int(row[0])
            right = -1 if row[-1] == size - 1 else int(row[-1]) - middle
            is_window = torch.equal(seen, _visible(keys - queries, left, right))
    except Exception as error:
        raise ExportError(f"the model's attention mask depends on more than distances: {error}") from error
    if not is_window:
        raise ExportError("the model's attention mask is no window around each token, which poolgraph cannot express")
    return left, right


def _interface_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Adapt transformers' (batch_size, num_heads, sequence_length, head_dim) to the semantic op's shape."""
    layer = type(module).__name__
    _check_expressible(layer, query, key, value, attention_mask, others)
    left, right = _window(module, sliding_window, is_causal)
    expected = getattr(attention_mask, _WINDOW, (left, right))
    if expected != (left, right):
        raise ExportError(f"{layer} asks for attention within {(left, right)} of each token, its mask for {expected}")
    num_heads, head_dim, value_dim = query.shape[1], query.shape[3], value.shape[3]
    if value_dim < head_dim:  # multi-head latent attention (arXiv:2405.04434)
        value = torch.nn.functional.pad(value, (0, head_dim - value_dim))
    result = attention(
        *(rows.transpose(1, 2).flatten(2) for rows in (query, key, value)),
        num_heads=num_heads,
        num_kv_heads=key.shape[1],
        scale=head_dim**-0.5 if scaling is None else float(scaling),
        left_window=left,
        right_window=right,
        softcap=float(softcap or 0),
        attention_mask=attention_mask,
        attention_bias=position_bias,
        sinks=s_aux,
    )
    rows = result.view(*result.shape[:2], num_heads, head_dim)
    return rows if value_dim == head_dim else rows[..., :value_dim], None


def _check_expressible(
    layer: str, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, others: dict[str, Any]
) -> None:
    unknown = sorted(name for name, it in others.items() if it is not None and name not in _WITHOUT_EFFECT)
    if unknown:
        raise ExportError(f"{layer} hands {', '.join(unknown)} to its attention, which poolgraph::Attention lacks")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ExportError(
            f"{layer} masks attention with {attention_mask.dim()} axes; poolgraph::Attention takes a padding mask, "
            "(batch_size, sequence_length)"
        )
    if key.shape[2] != query.shape[2]:
        raise ExportError(f"{layer} attends to another sequence; poolgraph::Attention is self-attention")
    if key.shape[3] != query.shape[3] or value.shape[3] > query.shape[3]:
        raise ExportError(
            f"{layer} has query, key and value heads of {query.shape[3]}, {key.shape[3]} and {value.shape[3]} numbers; "
            "poolgraph::Attention takes one size, and smaller values"
        )


def _window(module: torch.nn.Module, sliding_window: int | None, is_causal: bool | None) -> tuple[int, int]:
    """Return how far a query sees to the left and to the right, -1 for all.

    transformers counts a token itself into ``sliding_window``, on both sides (``masking_utils.py``:
    ``sliding_window_causal_mask_function``; ModernBERT and Gemma 3 add one for it), except where the configuration
    makes a causal module bidirectional: then its mask keeps distances up to and with ``sliding_window``
    (``sliding_window_bidirectional_overlay``).
    """
    module_is_causal = bool(getattr(module, "is_causal", False))
    if is_causal is None:
        is_causal = module_is_causal and getattr(getattr(module, "config", None), "is_causal", True) is not False
    causal = bool(is_causal)
    if sliding_window is None:
        return -1, 0 if causal else -1
    if sliding_window < 1:
        raise ExportError(f"{type(module).__name__} has a sliding_window of {sliding_window}; it is 1 or more")
    if causal:
        return sliding_window - 1, 0
    reach = sliding_window if module_is_causal else sliding_window - 1
    return reach, reach
