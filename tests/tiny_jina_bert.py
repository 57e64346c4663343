"""A tiny seeded jina-embeddings-v2 and its reranker as they are published, and what they compute, in numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architecture_graphs import MAX_LENGTH, TextOracle
from safetensors.torch import save_file
from scipy.special import erf
from tiny_models import VOCAB_SIZE, HeadSpec, bert_tokenizer, save_head

NUM_HEADS, HEAD_DIM, NUM_LAYERS, INNER_SIZE = 6, 8, 2, 40
"""Six heads: no power of two."""

HIDDEN_SIZE = NUM_HEADS * HEAD_DIM
SLOPES = (1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8)
"""Of ALiBi's six heads: those of four, then the first and the third of eight."""

CONFIG = {
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    "model_type": "bert",
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "emb_pooler": "mean",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "intermediate_size": INNER_SIZE,
    "max_position_embeddings": MAX_LENGTH,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}

Arrays = Mapping[str, np.ndarray[Any, Any]]


CODE = "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"
"""Of jina-embeddings-v2-base-code."""


def _shapes(*, num_labels: int, post_norm: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB_SIZE, HIDDEN_SIZE),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN_SIZE),
        **_norm_shapes("embeddings.LayerNorm"),
        **_linear_shapes("pooler.dense", HIDDEN_SIZE, HIDDEN_SIZE),
    }
    for layer in (f"encoder.layer.{index}" for index in range(NUM_LAYERS)):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear_shapes(f"{layer}.attention.{name}", HIDDEN_SIZE, HIDDEN_SIZE)
        first, second = ("up_gated_layer", "down_layer") if post_norm else ("gated_layers", "wo")
        shapes[f"{layer}.mlp.{first}.weight"] = (2 * INNER_SIZE, HIDDEN_SIZE)
        shapes |= _linear_shapes(f"{layer}.mlp.{second}", HIDDEN_SIZE, INNER_SIZE)
        more = ("attention.self.layer_norm_q", "attention.self.layer_norm_k", "layer_norm_1", "layer_norm_2")
        for name in ("attention.output.LayerNorm", *(more if post_norm else ("mlp.layernorm",))):
            shapes |= _norm_shapes(f"{layer}.{name}")
    if num_labels:
        shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
        shapes |= _linear_shapes("classifier", num_labels, HIDDEN_SIZE)
    return shapes


def _is_norm(name: str) -> bool:
    return "norm" in name.lower() and name.endswith("weight")


def _linear_shapes(name: str, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def _norm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (HIDDEN_SIZE,), f"{name}.bias": (HIDDEN_SIZE,)}


def save_jina_bert(folder: Path, *, num_labels: int = 0, post_norm: bool = False) -> TextOracle:
    """Save an embedder, or with labels a classifier; return what it answers.

    With ``post_norm`` it is one of code, as jina-embeddings-v2-base-code.
    """
    source = torch.Generator().manual_seed(8)
    tensors = {
        name: torch.randn(shape, generator=source) * (0.3 if len(shape) > 1 else 0.2) + _is_norm(name)
        for name, shape in _shapes(num_labels=num_labels, post_norm=post_norm).items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    name = "JinaBertForSequenceClassification" if num_labels else "JinaBertForMaskedLM"
    labels = {str(index): f"LABEL_{index}" for index in range(num_labels)}
    config = {**CONFIG, "architectures": [name], **({"id2label": labels} if num_labels else {})}
    config |= {"auto_map": {"AutoModel": CODE}} if post_norm else {}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    if not num_labels:
        save_head(folder, HeadSpec(max_seq_length=MAX_LENGTH), HIDDEN_SIZE)
    arrays = {name.removeprefix("bert."): tensor.double().numpy() for name, tensor in tensors.items()}

    def answer(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        encode = _encode_code if post_norm else _encode
        rows = encode(arrays, *(inputs[name][0].numpy() for name in ("input_ids", "token_type_ids")))
        result = (
            _linear(np.tanh(_linear(rows[0], arrays, "pooler.dense")), arrays, "classifier")
            if num_labels
            else rows.mean(0)
        )
        return torch.from_numpy(result)

    return answer


def _encode(arrays: Arrays, ids: np.ndarray[Any, Any], types: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    words, kinds = (arrays[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
    rows = _norm(words[ids] + kinds[types], arrays, "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{index}" for index in range(NUM_LAYERS)):
        attended = _linear(_attend(rows, arrays, f"{layer}.attention.self"), arrays, f"{layer}.attention.output.dense")
        rows = _norm(attended + rows, arrays, f"{layer}.attention.output.LayerNorm")
        gate, up = np.split(rows @ arrays[f"{layer}.mlp.gated_layers.weight"].T, 2, axis=-1)
        gated = gate * (1 + erf(gate / np.sqrt(2))) / 2 * up
        rows = _norm(_linear(gated, arrays, f"{layer}.mlp.wo") + rows, arrays, f"{layer}.mlp.layernorm")
    return rows


def _encode_code(arrays: Arrays, ids: np.ndarray[Any, Any], types: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two more norms a layer, and those of queries and keys; the half of the product that gates is the second."""
    words, kinds = (arrays[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
    rows = _norm(words[ids] + kinds[types], arrays, "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{index}" for index in range(NUM_LAYERS)):
        attended = _linear(_attend(rows, arrays, f"{layer}.attention.self"), arrays, f"{layer}.attention.output.dense")
        attended = _norm(attended + rows, arrays, f"{layer}.attention.output.LayerNorm")
        rows = _norm(rows + attended, arrays, f"{layer}.layer_norm_1")
        up, gate = np.split(rows @ arrays[f"{layer}.mlp.up_gated_layer.weight"].T, 2, axis=-1)
        gated = gate * (1 + erf(gate / np.sqrt(2))) / 2 * up
        rows = _norm(rows + _linear(gated, arrays, f"{layer}.mlp.down_layer"), arrays, f"{layer}.layer_norm_2")
    return rows


def _attend(rows: np.ndarray[Any, Any], arrays: Arrays, name: str) -> np.ndarray[Any, Any]:
    query, key, value = (_linear(rows, arrays, f"{name}.{part}") for part in ("query", "key", "value"))
    if f"{name}.layer_norm_q.weight" in arrays:
        query, key = _norm(query, arrays, f"{name}.layer_norm_q"), _norm(key, arrays, f"{name}.layer_norm_k")
    heads, position = [], np.arange(len(rows))
    distance = np.abs(np.subtract.outer(position, position))
    for head, slope in enumerate(SLOPES):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        scores = query[:, part] @ key[:, part].T / np.sqrt(HEAD_DIM) - slope * distance
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    return np.concatenate(heads, axis=-1)


def _linear(rows: np.ndarray[Any, Any], arrays: Arrays, name: str) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = rows @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
    return result


def _norm(rows: np.ndarray[Any, Any], arrays: Arrays, name: str) -> np.ndarray[Any, Any]:
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG["layer_norm_eps"])
    result: np.ndarray[Any, Any] = scaled * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]
    return result
