"""Tiny seeded rotary encoders in the layouts that they are published in, and as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_decoders import draw_wide
from tiny_models import VOCAB_SIZE, HeadSpec, save_head, xlm_roberta_tokenizer
from transformers import GteConfig, PreTrainedModel, PreTrainedTokenizerFast

MAX_LENGTH = 640
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, INNER_SIZE = 32, 2, 4, 64
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A checkpoint in a published layout and the model of transformers that it stands for.

    Attributes:
        model: The seeded model, the oracle.
        config: ``config.json`` as published.
        tensors: The tensors as published.
        tokenizer: Its tokenizer.
        head: Sentence-transformers' files, or None.
    """

    model: PreTrainedModel
    config: Mapping[str, Any]
    tensors: Tensors
    tokenizer: Callable[[], PreTrainedTokenizerFast] = xlm_roberta_tokenizer
    head: HeadSpec | None = None
    extra: Tensors = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write the files."""
        folder.mkdir(parents=True)
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(dict(self.config)), encoding="utf-8")
        save_tokenizer(folder, self.tokenizer)
        if self.head is not None:
            save_head(folder, self.head, HIDDEN_SIZE)
        return folder


def save_tokenizer(folder: Path, make: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Write a tokenizer that lets texts of MAX_LENGTH tokens through."""
    tokenizer = make()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)


def gte_theta(factor: float, base: float = 500.0) -> tuple[float, float]:
    """Return the base and the divisor of positions of fixed NTK scaling."""
    return base * factor, factor ** (2 / HEAD_DIM)


def publish_gte(*, classifier: bool = False, factor: float | None = 4.0, type_vocab_size: int = 1) -> Published:
    """Alibaba's layout (``model_type`` "new"), scaled by fixed NTK; a reranker of one label with ``classifier``."""
    import transformers

    theta, divisor = gte_theta(factor or 1.0)
    config = GteConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        intermediate_size=INNER_SIZE,
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=type_vocab_size,
        rope_parameters={"rope_type": "linear", "rope_theta": theta, "factor": divisor},
        num_labels=1 if classifier else 2,
    )
    name = "GteForSequenceClassification" if classifier else "GteModel"
    model = draw_wide(getattr(transformers, name)._from_config(config, attn_implementation="eager"))
    tensors = gte_tensors(model.state_dict())
    if classifier:
        tensors = {f"new.{key}" if not key.startswith("classifier") else key: it for key, it in tensors.items()}
    published = {
        "architectures": ["NewForSequenceClassification"] if classifier else ["NewModel"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        },
        "classifier_dropout": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": INNER_SIZE,
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "max_position_embeddings": MAX_LENGTH,
        "model_type": "new",
        "num_attention_heads": NUM_HEADS,
        "num_hidden_layers": NUM_LAYERS,
        "pack_qkv": True,
        "pad_token_id": 1,
        "position_embedding_type": "rope",
        "rope_scaling": None if factor is None else {"factor": factor, "type": "ntk"},
        "rope_theta": 500,
        "torch_dtype": "float16",
        "transformers_version": "4.39.1",
        "type_vocab_size": type_vocab_size,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
        "vocab_size": VOCAB_SIZE,
    }
    if classifier:
        published |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return Published(model=model, config=published, tensors=tensors)


def gte_tensors(native: Tensors) -> Tensors:
    """Rename a GteModel's tensors, Q, K and V fused, up before gate."""
    tensors = {}
    for key, tensor in native.items():
        name = key.removeprefix("gte.")
        name = name.replace("self_attn.o_proj", "attention.o_proj").replace("post_attention_layernorm", "attn_ln")
        name = name.replace("post_mlp_layernorm", "mlp_ln").replace("layers.", "encoder.layer.")
        if "self_attn.q_proj" in key:
            fused = [native[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensors[name.replace("self_attn.q_proj", "attention.qkv_proj")] = torch.cat(fused)
        elif "mlp.up_proj" in key:
            tensors[name.replace("up_proj", "up_gate_proj")] = torch.cat([tensor, native[key.replace("up_", "gate_")]])
        elif not any(part in key for part in ("k_proj", "v_proj", "gate_proj")):
            tensors[name] = tensor
    return tensors
