"""Tiny seeded checkpoints of Llama's relatives as they are published, and decoders that read in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_graphs import MAX_LENGTH, TextOracle
from safetensors.torch import load_file, save_file
from tiny_decoders import SIZES, TINY_DECODERS, save_decoder
from tiny_heads import change_json
from tiny_models import VOCAB_SIZE
from torch import Tensor


def save_long(
    folder: Path, name: str, cls: str | None = None, *, seed: int = 3, longest: int = MAX_LENGTH, **changes: Any
) -> Path:
    """Save a decoder whose texts may have ``longest`` tokens."""
    save_decoder(folder, name, cls, seed=seed, **{"max_position_embeddings": longest, **changes})
    change_json(folder / "tokenizer_config.json", model_max_length=longest)
    return folder


def save_bidirectional_llama(folder: Path, pooling: str, *, num_labels: int | None = None) -> Path:
    """Save as NVIDIA does: Llama's tensors, a model type and classes of its own, remote code that is not there."""
    kind = "Model" if num_labels is None else "ForSequenceClassification"
    save_long(folder, "LlamaModel", f"Llama{kind}", **({} if num_labels is None else {"num_labels": num_labels}))
    name = f"LlamaBidirectional{kind}"
    change_json(
        folder / "config.json",
        model_type="llama_bidirec",
        architectures=[name],
        auto_map={"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"},
        pooling=pooling,
        temperature=1.0,
    )
    return folder


def both_sides_rows(folder: Path, cls: str, config: Any = None) -> TextOracle:
    """Rows of transformers' decoder under a mask by which every token sees every other."""
    model: Any = getattr(transformers, cls).from_pretrained(
        folder, config=config, attn_implementation="eager", dtype=torch.float32
    )

    def rows(inputs: dict[str, Tensor]) -> Tensor:
        length = inputs["input_ids"].shape[1]
        found: Tensor = model.eval()(
            input_ids=inputs["input_ids"], attention_mask=torch.zeros(1, 1, length, length)
        ).last_hidden_state[0]
        return found

    return rows


def llama_config(folder: Path) -> Any:
    """Return a published configuration as the Llama's that it stands for."""
    published = json.loads((folder / "config.json").read_text())
    dropped = ("model_type", "architectures", "auto_map", "pooling", "temperature")
    return transformers.LlamaConfig(**{name: value for name, value in published.items() if name not in dropped})


def save_internlm(folder: Path, *, trained: int = MAX_LENGTH) -> Path:
    """Save an InternLM2 reward model with the tensors' published names, drawn wide."""
    hidden, inner, groups = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_key_value_heads"]
    heads = SIZES["num_attention_heads"]
    layer = {
        "attention.wqkv.weight": ((heads + 2 * groups) * hidden // heads, hidden),
        "attention.wo.weight": (hidden, hidden),
        "feed_forward.w1.weight": (inner, hidden),
        "feed_forward.w2.weight": (hidden, inner),
        "feed_forward.w3.weight": (inner, hidden),
        "attention_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
    }
    shapes = {"model.tok_embeddings.weight": (VOCAB_SIZE, hidden), "model.norm.weight": (hidden,)}
    for index in range(SIZES["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["v_head.weight"] = (1, hidden)
    source = torch.Generator().manual_seed(6)
    tensors = {
        name: torch.randn(shape, generator=source) * (0.3 if len(shape) > 1 else 0.2) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
        "model_type": "internlm2",
        "bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "n_positions": MAX_LENGTH,
        "reward_token_id": 3,
        **SIZES,
        "max_position_embeddings": trained,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = TINY_DECODERS["LlamaModel"].tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    return folder


def score_weight(folder: Path) -> Tensor:
    """Return a classifier's only layer, (num_labels, hidden_size)."""
    return load_file(folder / "model.safetensors")["score.weight"]
