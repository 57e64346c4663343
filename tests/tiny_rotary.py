"""Tiny seeded rotary encoders in the layouts that they are published in, and as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tiny_decoders import draw_wide
from tiny_models import VOCAB_SIZE, HeadSpec, save_head, xlm_roberta_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_LENGTH = 640
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, INNER_SIZE = 32, 2, 4, 64
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
COLBERT_SIZE = 16

LORA_RANK, LORA_ALPHA = 4, 2
LORA_TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")

Tensors = dict[str, torch.Tensor]

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "intermediate_size": INNER_SIZE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A checkpoint in a published layout and the model of transformers that it stands for.

    Attributes:
        config: ``config.json`` as published.
        tensors: The tensors as published.
        model: The seeded model, the oracle; None where transformers has none.
        tokenizer: Its tokenizer.
        head: Sentence-transformers' files, or None.
        transformer: What modules.json calls the first module.
    """

    config: Mapping[str, Any]
    tensors: Tensors
    model: PreTrainedModel | None = None
    tokenizer: Callable[[], PreTrainedTokenizerFast] = xlm_roberta_tokenizer
    head: HeadSpec | None = None
    transformer: str = "sentence_transformers.models.Transformer"

    def save(self, folder: Path) -> Path:
        """Write the files."""
        folder.mkdir(parents=True)
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(dict(self.config)), encoding="utf-8")
        self._save_rest(folder)
        return folder

    def save_native(self, folder: Path) -> Path:
        """Write the files as transformers' class saves them."""
        assert self.model is not None
        self.model.save_pretrained(folder)
        self._save_rest(folder)
        return folder

    def _save_rest(self, folder: Path) -> None:
        tokenizer = self.tokenizer()
        tokenizer.model_max_length = MAX_LENGTH
        tokenizer.save_pretrained(folder)
        if self.head is None:
            return
        save_head(folder, self.head, HIDDEN_SIZE)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = self.transformer
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def build(name: str, config: transformers.PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a seeded model with eager attention."""
    return draw_wide(getattr(transformers, name)._from_config(config, attn_implementation="eager"), seed)


def rename(tensors: Tensors, pairs: Sequence[tuple[str, str]]) -> Tensors:
    """Replace parts of names, in order."""
    renamed = {}
    for name, tensor in tensors.items():
        new_name = name
        for old, new in pairs:
            new_name = new_name.replace(old, new)
        renamed[new_name] = tensor
    return renamed


def fuse(tensors: Tensors, parts: Sequence[str], fused: str) -> Tensors:
    """Put tensors that differ by a part of their names one below the other, under another part."""
    joined = {}
    for name, tensor in tensors.items():
        if parts[0] in name:
            rows = [tensors[name.replace(parts[0], part)] for part in parts]
            joined[name.replace(parts[0], fused)] = torch.cat(rows)
        elif not any(part in name for part in parts):
            joined[name] = tensor
    return joined


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

GTE_NAMES = (
    ("gte.", ""),
    ("self_attn.o_proj", "attention.o_proj"),
    ("post_attention_layernorm", "attn_ln"),
    ("post_mlp_layernorm", "mlp_ln"),
    ("layers.", "encoder.layer."),
)


def publish_gte(*, classifier: bool = False, factor: float | None = 4.0, type_vocab_size: int = 1) -> Published:
    """Alibaba's layout (``model_type`` "new"), scaled by fixed NTK; a reranker of one label with ``classifier``."""
    theta, scale = 500.0, factor or 1.0
    config = transformers.GteConfig(
        **SIZES,
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=type_vocab_size,
        rope_parameters={"rope_type": "linear", "rope_theta": theta * scale, "factor": scale ** (2 / HEAD_DIM)},
        num_labels=1 if classifier else 2,
    )
    model = build("GteForSequenceClassification" if classifier else "GteModel", config)
    tensors = fuse(model.state_dict(), QKV, "attention.qkv_proj")
    tensors = rename(fuse(tensors, ("mlp.up_proj", "mlp.gate_proj"), "mlp.up_gate_proj"), GTE_NAMES)
    if classifier:
        tensors = {key if key.startswith("classifier") else f"new.{key}": it for key, it in tensors.items()}
    published = {
        **SIZES,
        "architectures": ["NewForSequenceClassification"] if classifier else ["NewModel"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        },
        "classifier_dropout": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "max_position_embeddings": MAX_LENGTH,
        "model_type": "new",
        "pack_qkv": True,
        "pad_token_id": 1,
        "position_embedding_type": "rope",
        "rope_scaling": None if factor is None else {"factor": factor, "type": "ntk"},
        "rope_theta": 500,
        "torch_dtype": "float16",
        "type_vocab_size": type_vocab_size,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
        **({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if classifier else {}),
    }
    return Published(model=model, config=published, tensors=tensors)


JINA_NAMES = (
    ("embeddings.LayerNorm", "emb_ln"),
    ("self_attn.o_proj", "mixer.out_proj"),
    ("post_attention_layernorm", "norm1"),
    ("post_mlp_layernorm", "norm2"),
    ("layers.", "encoder.layers."),
)


def publish_jina(name: str = "XLMRobertaModel", *, task: str | None = None, vocab_size: int = VOCAB_SIZE) -> Published:
    """Jina's rotary XLM-RoBERTa; as jina-embeddings-v3, whose oracle has the adapter ``task``, if one is named."""
    kind = name.removeprefix("XLMRoberta") if name.startswith("XLMRoberta") else "Model"
    sizes = {**SIZES, "vocab_size": vocab_size}
    config = transformers.JinaEmbeddingsV3Config(
        **sizes,
        max_position_embeddings=MAX_LENGTH + 2,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        num_labels=1 if kind == "ForSequenceClassification" else 2,
    )
    model = build(f"JinaEmbeddingsV3{kind}", config)
    native = {key if kind != "Model" else f"roberta.{key}": it.clone() for key, it in model.state_dict().items()}
    tensors = rename(fuse(native, QKV, "mixer.Wqkv"), JINA_NAMES)
    published = {
        **sizes,
        "architectures": [name],
        "auto_map": {
            "AutoConfig": "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA",
        },
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": MAX_LENGTH + 2,
        "model_type": "xlm-roberta",
        "output_past": True,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 700.0,
        "torch_dtype": "bfloat16",
        "truncate_dim": None,
        "type_vocab_size": 1,
        "use_cache": False,
        "use_flash_attn": True,
    }
    if kind == "ForSequenceClassification":
        published |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    if name.startswith(("HF_ColBERT", "ColBERT")):
        tensors["linear.weight"] = torch.randn(COLBERT_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    if task is None:
        return Published(model=model, config=published, tensors=tensors)
    merged = _add_adapters(tensors, LORA_TASKS.index(task))
    model.load_state_dict(_merged_state(native, merged))
    published |= {
        "load_trained_adapters": True,
        "lora_adaptations": list(LORA_TASKS),
        "lora_alpha": LORA_ALPHA,
        "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False,
        "lora_rank": LORA_RANK,
        "matryoshka_dimensions": [8, 16, 32],
        "task_instructions": dict.fromkeys(LORA_TASKS, ""),
    }
    return Published(
        model=model, config=published, tensors=tensors, head=HeadSpec(max_seq_length=MAX_LENGTH), transformer=CUSTOM
    )


CUSTOM = "custom_st.Transformer"
PARAMETRIZED = (".Wqkv.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight", "embeddings.weight", ".dense.weight")


def _add_adapters(tensors: Tensors, index: int) -> Tensors:
    """Replace weights by their parametrization in ``tensors`` and return the weights with adapter ``index`` merged."""
    generator = torch.Generator().manual_seed(7)
    merged = {}
    for name in [name for name in tensors if name.endswith(PARAMETRIZED)]:
        weight = tensors.pop(name)
        stem = f"{name.removesuffix('.weight')}.parametrizations.weight"
        is_table = "embeddings" in name
        rows, columns = weight.shape
        # A linear layer's A is (rank, columns) and B (rows, rank); a table's are A (rows, rank) and B (rank, columns).
        left = torch.randn(len(LORA_TASKS), rows, LORA_RANK, generator=generator) * 0.2
        right = torch.randn(len(LORA_TASKS), LORA_RANK, columns, generator=generator) * 0.2
        tensors[f"{stem}.original"] = weight
        tensors[f"{stem}.0.lora_A"], tensors[f"{stem}.0.lora_B"] = (left, right) if is_table else (right, left)
        merged[name] = weight + LORA_ALPHA / LORA_RANK * torch.einsum("ir,rj->ij", left[index], right[index])
    return merged


def _merged_state(native: Tensors, merged: Tensors) -> Tensors:
    """Return transformers' state with the merged weights, split again."""
    state = {}
    for name, tensor in native.items():
        (published,) = rename({name: tensor}, JINA_NAMES)
        part = next((part for part in QKV if part in name), "")
        fused = merged.get(published.replace(part, "mixer.Wqkv")) if part else None
        split = tensor if fused is None else fused.chunk(3)[QKV.index(part)]
        state[name.removeprefix("roberta.")] = merged.get(published, split)
    return state
