"""Nomic's BERT with experts in plain numpy, from the published tensors, a text and a token's experts at a time.

Written from arXiv:2502.07972 (routing) and the published settings, apart from the module that is exported.
"""

from __future__ import annotations

import math

import numpy as np
from tiny_nomic import NUM_CHOSEN, NUM_EXPERTS
from tiny_rotary import HEAD_DIM, NUM_HEADS, NUM_LAYERS, Published

Array = np.ndarray

MARGIN = 1e-5
"""Least difference of the weights of the last expert that is chosen and the next: closer ones, rounding decides for."""

_erf = np.vectorize(math.erf)


def moe_rows(published: Published, ids: list[int]) -> Array:
    """Return a text's rows, (num_tokens, hidden_size), computed in float64."""
    tensors = {name: tensor.double().numpy() for name, tensor in published.tensors.items()}
    epsilon = published.config["layer_norm_epsilon"]
    rows = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][0]
    rows = _norm(rows, tensors, "emb_ln", epsilon)
    for index in range(NUM_LAYERS):
        own = {
            name.removeprefix(f"encoder.layers.{index}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"encoder.layers.{index}.")
        }
        rows = _norm(rows + _attend(rows, own, published.config["rotary_emb_base"]), own, "norm1", epsilon)
        change = _mix(rows, own) if index % published.config["moe_every_n_layers"] == 1 else _dense(rows, own)
        rows = _norm(rows + change, own, "norm2", epsilon)
    return rows.astype(np.float32)


def _norm(rows: Array, tensors: dict[str, Array], name: str, epsilon: float) -> Array:
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _linear(rows: Array, tensors: dict[str, Array], name: str) -> Array:
    return rows @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def _gelu(values: Array) -> Array:
    return values * 0.5 * (1 + _erf(values / math.sqrt(2)))


def _attend(rows: Array, tensors: dict[str, Array], base: float) -> Array:
    query, key, value = np.split(_linear(rows, tensors, "attn.Wqkv"), 3, axis=-1)
    heads = []
    for head in range(NUM_HEADS):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        scores = _rotate(query[:, own], base) @ _rotate(key[:, own], base).T / math.sqrt(HEAD_DIM)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(shares / shares.sum(-1, keepdims=True) @ value[:, own])
    return _linear(np.concatenate(heads, -1), tensors, "attn.out_proj")


def _rotate(vectors: Array, base: float) -> Array:
    """Turn the pairs (i, i + d/2) of a head as complex numbers by position times base^(-2i/d)."""
    half = HEAD_DIM // 2
    angles = np.arange(len(vectors))[:, None] * base ** (-np.arange(half) / half)
    turned = (vectors[:, :half] + 1j * vectors[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


def _dense(rows: Array, tensors: dict[str, Array]) -> Array:
    return _linear(_gelu(_linear(rows, tensors, "mlp.fc1")), tensors, "mlp.fc2")


def _mix(rows: Array, tensors: dict[str, Array]) -> Array:
    """Send each token to its best experts, weighted by the softmax over all of them; one bias for all."""
    up, down = (np.split(tensors[f"mlp.experts.mlp.{name}"], NUM_EXPERTS) for name in ("w1", "w2"))
    scores = np.exp(rows @ tensors["mlp.router.layer.weight"].T)
    weights = scores / scores.sum(-1, keepdims=True)
    last, first_left_out = np.sort(weights)[:, -NUM_CHOSEN], np.sort(weights)[:, -NUM_CHOSEN - 1]
    assert (last - first_left_out).min() > MARGIN, "a token between two experts: draw the weights by another seed"
    mixed = []
    for row, shares in zip(rows, weights, strict=True):
        best = np.argsort(-shares)[:NUM_CHOSEN]
        mixed.append(sum(shares[expert] * (_gelu(up[expert] @ row) @ down[expert]) for expert in best))
    return np.stack(mixed) + tensors["mlp.experts.bias"]
