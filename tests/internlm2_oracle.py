"""InternLM2's reward model in plain numpy, from its paper (arXiv:2403.17297) and its tensors' published names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Tensors = Mapping[str, np.ndarray]


def reward_rows(folder: Path, ids: np.ndarray) -> np.ndarray:
    """One text's token ids, (num_tokens,), to a reward a token, (num_tokens, 1), in float64."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: array.astype(np.float64) for name, array in load_file(folder / "model.safetensors").items()}
    rows = tensors["model.tok_embeddings.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        layer = {
            name.removeprefix(f"model.layers.{index}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.layers.{index}.")
        }
        rows = rows + _attention(_norm(rows, layer["attention_norm.weight"], config), layer, config)
        rows = rows + _feed_forward(_norm(rows, layer["ffn_norm.weight"], config), layer)
    result: np.ndarray = _norm(rows, tensors["model.norm.weight"], config) @ tensors["v_head.weight"].T
    return result


def _norm(rows: np.ndarray, weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def _feed_forward(rows: np.ndarray, layer: Tensors) -> np.ndarray:
    gate = rows @ layer["feed_forward.w1.weight"].T
    return (gate / (1 + np.exp(-gate)) * (rows @ layer["feed_forward.w3.weight"].T)) @ layer["feed_forward.w2.weight"].T


def _attention(rows: np.ndarray, layer: Tensors, config: Mapping[str, Any]) -> np.ndarray:
    """Each key and value head's rows of wqkv: its query heads one after the other, its key head, its value head."""
    length, groups = len(rows), config["num_key_value_heads"]
    size = config["num_attention_heads"] // groups
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    fused = (rows @ layer["attention.wqkv.weight"].T).reshape(length, groups, size + 2, head_dim)
    attended = np.empty((length, groups, size, head_dim))
    hidden = np.triu(np.full((length, length), -np.inf), 1)
    for group in range(groups):
        key, value = _rotate(fused[:, group, size], config), fused[:, group, size + 1]
        for head in range(size):
            scores = _rotate(fused[:, group, head], config) @ key.T / np.sqrt(head_dim) + hidden
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, group, head] = weights / weights.sum(-1, keepdims=True) @ value
    return attended.reshape(length, -1) @ layer["attention.wo.weight"].T


def _rotate(rows: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Rotate the two halves of a head; the base grows with a text longer than what was trained."""
    length, head_dim = rows.shape
    base, scaling, trained = float(config["rope_theta"]), config["rope_scaling"], config["max_position_embeddings"]
    if scaling is not None and length > trained:
        growth = scaling["factor"] * length / trained - (scaling["factor"] - 1)
        base *= growth ** (head_dim / (head_dim - 2))
    angles = np.outer(np.arange(length), base ** (-np.arange(0, head_dim, 2) / head_dim))
    cosine, sine = np.cos(angles), np.sin(angles)
    first, second = np.split(rows, 2, axis=1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=1)
