"""CUDA's norms, activations, rotary embeddings and recurrences in numpy, against ONNX Runtime's CPU kernels."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_operators import run_reference
from little_graphs import random, session
from one_node import TOLERANCE, TYPES, compare, evaluate, one_node

HEADS, SIZE = 4, 8
ANGLES = np.arange(16)[:, None] / 10.0 ** np.arange(SIZE // 2)
CACHES = [function(ANGLES).astype(np.float32) for function in (np.cos, np.sin)]


@pytest.mark.parametrize("shape", [(2, 5, 16), (9, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_skip_norms(shape, with_bias: bool) -> None:
    rows, skip = random(*shape, seed=1), random(*shape, seed=2)
    gamma, beta, bias = (random(16, seed=seed) for seed in (3, 4, 5))
    added = [bias] if with_bias else []
    for operator, inputs in (
        ("SkipLayerNormalization", [rows, skip, gamma, beta, *added]),
        ("SkipSimplifiedLayerNormalization", [rows, skip, gamma, *added]),
    ):
        model, feeds = one_node(f"com.microsoft.{operator}", inputs, 4, epsilon=1e-3)
        graph = model.graph
        for output in graph.outputs[1:3]:
            output.name = ""
        kept = [graph.outputs[0], graph.outputs[3]]
        graph.outputs.clear()
        graph.outputs.extend(kept)
        expected = session(model).run(None, feeds)
        for left, right in zip(expected, run_reference(model, feeds).values(), strict=True):
            np.testing.assert_allclose(right, left, rtol=5e-6, atol=5e-6)


def test_skip_norm_in_half_rounds_once_and_broadcasts_the_skip() -> None:
    rows, skip, gamma, beta = random(2, 5, 16), random(5, 16, seed=2), random(16, seed=3), random(16, seed=4)
    compare("com.microsoft.SkipLayerNormalization", rows, skip, gamma, beta, tolerance=5e-6)
    halves = [it.astype(np.float16) for it in (rows, skip, gamma, beta)]
    found = evaluate("com.microsoft.SkipLayerNormalization", *halves)[0]
    wide = evaluate("com.microsoft.SkipLayerNormalization", *(it.astype(np.float32) for it in halves))[0]
    np.testing.assert_array_equal(found, wide.astype(np.float16))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_simplified_layer_normalization(kind) -> None:
    rows, scale = random(3, 4, 16).astype(kind), random(16, seed=2).astype(kind)
    compare("SimplifiedLayerNormalization", rows, scale, axis=-1, epsilon=1e-5, tolerance=TOLERANCE[TYPES[rows.dtype]])


@pytest.mark.parametrize(
    ("operator", "with_bias", "attributes"),
    [
        ("com.microsoft.BiasGelu", True, {}),
        ("com.microsoft.FastGelu", True, {}),
        ("com.microsoft.FastGelu", False, {}),
        ("com.microsoft.QuickGelu", False, {"alpha": 1.0}),
        ("com.microsoft.QuickGelu", False, {}),
        ("com.microsoft.Gelu", False, {}),
        ("Gelu", False, {}),
        ("Gelu", False, {"approximate": "tanh"}),
    ],
)
def test_activations(operator: str, with_bias: bool, attributes) -> None:
    inputs = [4 * random(3, 5, 16), *([random(16, seed=2)] if with_bias else [])]
    compare(operator, *inputs, tolerance=3e-6, **attributes)
    halves = [it.astype(np.float16) for it in inputs]
    wide = evaluate(operator, *(it.astype(np.float32) for it in halves), **attributes)[0]
    np.testing.assert_array_equal(evaluate(operator, *halves, **attributes)[0], wide.astype(np.float16))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", ["offset", "each"])
@pytest.mark.parametrize("form", ["rows", "heads", "partial"])
def test_rotary_embedding(kind, interleaved: int, positions: str, form: str) -> None:
    rows = random(2, HEADS, 5, SIZE) if form == "heads" else random(2, 5, HEADS * SIZE)
    positions = np.array([3]) if positions == "offset" else np.array([[0, 1, 2, 3, 4], [9, 3, 3, 0, 1]])
    rotated = SIZE // 2 if form == "partial" else SIZE
    caches = [it[:, : rotated // 2].astype(kind) for it in CACHES]
    attributes = {"num_heads": HEADS, "rotary_embedding_dim": rotated} if form == "partial" else {}
    compare(
        "com.microsoft.RotaryEmbedding",
        rows.astype(kind),
        positions,
        *caches,
        interleaved=interleaved,
        tolerance=TOLERANCE[TYPES[np.dtype(kind)]],
        **attributes,
    )


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(2, 2), (4, 2), (1, 4)])
@pytest.mark.parametrize("wide_decay", [True, False])
def test_linear_attention(rule: str, q_heads: int, kv_heads: int, wide_decay: bool) -> None:
    key_size, value_size = 4, 3
    query, key = random(2, 6, q_heads * key_size), random(2, 6, kv_heads * key_size, seed=1) / 2
    value = random(2, 6, kv_heads * value_size, seed=2)
    decay = -np.abs(random(2, 6, kv_heads * (key_size if wide_decay else 1), seed=3)) if "gated" in rule else None
    beta = np.abs(random(2, 6, kv_heads, seed=4)) / 2 if "delta" in rule else None
    past = random(2, kv_heads, key_size, value_size, seed=5)
    inputs = [query, key, value, past, decay, beta]
    while inputs[-1] is None:
        inputs.pop()
    heads = {"q_num_heads": q_heads, "kv_num_heads": kv_heads, "update_rule": rule}
    compare("com.microsoft.LinearAttention", *inputs, outputs=2, scale=0.7, tolerance=1e-5, **heads)


def test_the_scan_of_mamba_is_linear_attention() -> None:
    """State h = exp(dt A) h + dt x B, answer C h (arXiv:2312.00752, section 3): a head a channel, values of size 1."""
    batch, length, channels, size = 2, 5, 6, 4
    rows, step = random(batch, length, channels), np.abs(random(batch, length, channels, seed=1))
    transition = -np.abs(random(channels, size, seed=2))
    write, read = random(batch, length, size, seed=3), random(batch, length, size, seed=4)
    state, expected = np.zeros((batch, channels, size)), np.zeros((batch, length, channels))
    for token in range(length):
        state = np.exp(step[:, token, :, None] * transition) * state
        state = state + (step[:, token] * rows[:, token])[..., None] * write[:, token, None]
        expected[:, token] = (state * read[:, token, None]).sum(-1)
    key = np.tile(write[:, :, None], (1, 1, channels, 1)).reshape(batch, length, -1)
    decay = (step[..., None] * transition).reshape(batch, length, -1)
    heads = {"q_num_heads": 1, "kv_num_heads": channels, "update_rule": "gated", "scale": 1.0}
    found = evaluate("com.microsoft.LinearAttention", read, key, step * rows, None, decay, outputs=2, **heads)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("length", [2, 9])
@pytest.mark.parametrize(("dilation", "channels_last"), [(1, 0), (2, 0), (1, 1)])
def test_causal_convolution(activation: str, with_bias: bool, length: int, dilation: int, channels_last: int) -> None:
    rows = random(2, length, 5) if channels_last else random(2, 5, length)
    weight, bias = random(5, 1, 4, seed=1), random(5, seed=2) if with_bias else None
    compare(
        "com.microsoft.CausalConvWithState",
        *[rows, weight, *([bias] if with_bias else [])],
        outputs=2,
        activation=activation,
        dilation=dilation,
        channels_last=channels_last,
        tolerance=5e-6,
    )
