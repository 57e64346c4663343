"""The native operators of attention, run alone, and what they compute, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from native_graphs import native_session

from poolgraph.graphs.manifest import NATIVE_OPERATORS
from poolgraph.graphs.native import ATTENTION, FLOAT_ATTENTION
from poolgraph.runtime.native_library import used_instructions

INPUTS = ("query", "key", "value", "bounds", "bias", "by_distance", "sinks")


def rows_of(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def rounding_of(operator: str) -> float:
    """Return what rounding may change, of the largest answer: to float32, bfloat16 in tiles, or 16-bit integers."""
    if operator == FLOAT_ATTENTION:
        return 3e-6
    assert operator == ATTENTION
    return 1.5e-2 if used_instructions(NATIVE_OPERATORS) else 1e-3


def attention_attributes(heads: int, kv_heads: int, size: int, **more: Any) -> dict[str, Any]:
    defaults = {"scale": size**-0.5, "is_causal": 0, "left_window": -1, "right_window": -1}
    return {"num_heads": heads, "kv_num_heads": kv_heads, "head_size": size, **defaults, **more}


def expected_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attributes: dict[str, Any],
    bias: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Attention in float64; each head's sink is the score of one more key, whose value is 0."""
    heads, kv_heads, size = (attributes[name] for name in ("num_heads", "kv_num_heads", "head_size"))
    batch, length, keys = *query.shape[:2], key.shape[1]
    split = [
        rows.astype(np.float64).reshape(batch, -1, count, size).transpose(0, 2, 1, 3).repeat(heads // count, axis=1)
        for rows, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    ]
    scores = split[0] @ split[1].transpose(0, 1, 3, 2) * attributes["scale"]
    if cap := attributes.get("softcap"):
        scores = cap * np.tanh(scores / cap)
    scores = scores + (0 if bias is None else bias)
    ahead = np.arange(keys)[None, :] - (np.arange(length) + keys - length)[:, None]
    left, right = attributes["left_window"], attributes["right_window"]
    hidden = (ahead > 0 if attributes["is_causal"] else ahead > keys) | (ahead < -left if left >= 0 else ahead < -keys)
    hidden |= ahead > right if right >= 0 else ahead > keys
    scores = np.where(hidden, -np.inf, scores)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))], axis=-1)
        split[2] = np.pad(split[2], ((0, 0), (0, 0), (0, 1), (0, 0)))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    rows = weights @ split[2] / weights.sum(-1, keepdims=True)
    return rows.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def run_attention(
    operator: str,
    parts: list[np.ndarray],
    attributes: dict[str, Any],
    threads: int = 1,
    **more: np.ndarray,
) -> np.ndarray:
    """Run an operator; ``more`` has inputs behind query, key and value by name, of which the last are left out."""
    given = {**dict(zip(INPUTS, parts, strict=False)), **more}
    last = max(INPUTS.index(name) for name in given)
    inputs = {name: given.get(name) for name in INPUTS[: last + 1]}
    if operator == FLOAT_ATTENTION:
        attributes = {"softcap": 0.0, **attributes}
    feeds = {name: rows for name, rows in inputs.items() if rows is not None}
    return native_session(operator, inputs, attributes, tuple(feeds), threads=threads).run(None, feeds)[0]


KINDS = {
    "all": {},
    "causal": {"is_causal": 1},
    "window": {"left_window": 5, "right_window": 5},
    "causal window": {"is_causal": 1, "left_window": 20},
    "left": {"left_window": 0},
}
