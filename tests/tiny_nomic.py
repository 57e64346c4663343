"""Tiny seeded checkpoints in Nomic's published layouts."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_models import VOCAB_SIZE, HeadSpec, bert_tokenizer
from tiny_rotary import (
    HIDDEN_SIZE,
    INNER_SIZE,
    MAX_LENGTH,
    NUM_HEADS,
    NUM_LAYERS,
    QKV,
    SIZES,
    Published,
    build,
    fuse,
    rename,
)

TRAINED_LENGTH = 48
"""Of the models whose base grows with the text."""

NUM_EXPERTS, NUM_CHOSEN = 4, 2

NOMIC_NAMES = (
    ("embeddings.LayerNorm", "emb_ln"),
    ("self_attn.o_proj", "attn.out_proj"),
    ("post_attention_layernorm", "norm1"),
    ("post_mlp_layernorm", "norm2"),
    ("mlp.up_proj", "mlp.fc11"),
    ("mlp.gate_proj", "mlp.fc12"),
    ("mlp.down_proj", "mlp.fc2"),
    ("layers.", "encoder.layers."),
)

NOMIC = {
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    },
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "max_trained_positions": TRAINED_LENGTH,
    "model_type": "nomic_bert",
    "n_embd": HIDDEN_SIZE,
    "n_head": NUM_HEADS,
    "n_inner": INNER_SIZE,
    "n_layer": NUM_LAYERS,
    "n_positions": MAX_LENGTH,
    "pad_vocab_size_multiple": 16,
    "parallel_block": False,
    "prenorm": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 300,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_weights": True,
    "summary_first_dropout": 0.1,
    "summary_type": "cls_index",
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "vocab_size": VOCAB_SIZE,
}


def publish_nomic(*, factor: float | None = None) -> Published:
    """Nomic's layout of v1 and v1.5: SwiGLU without biases; with ``factor``, dynamic NTK beyond TRAINED_LENGTH."""
    scaling: dict[str, Any] = {"rope_type": "default"} if factor is None else {"rope_type": "dynamic", "factor": factor}
    config = transformers.NomicBertConfig(
        **SIZES,
        max_position_embeddings=MAX_LENGTH if factor is None else TRAINED_LENGTH,
        rope_parameters={**scaling, "rope_theta": 300.0},
    )
    model = build("NomicBertModel", config)
    published = {
        **NOMIC,
        "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-12,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "qkv_proj_bias": False,
        "rotary_scaling_factor": factor,
        "type_vocab_size": 2,
    }
    tensors = rename(fuse(model.state_dict(), QKV, "attn.Wqkv"), NOMIC_NAMES)
    head = HeadSpec(modules=(), max_seq_length=MAX_LENGTH)
    return Published(model=model, config=published, tensors=tensors, tokenizer=bert_tokenizer, head=head)


def publish_nomic_moe() -> Published:
    """Nomic's layout of v2-moe: GELU, biases, every second layer of experts; transformers has no class for it."""
    published = {
        **NOMIC,
        "activation_function": "gelu",
        "expert_choice_router": False,
        "ffn_div": 1,
        "layer_norm_epsilon": 1e-05,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
        "moe_every_n_layers": 2,
        "moe_impl": "megablocks",
        "moe_normalize_expert_weights": False,
        "moe_top_k": NUM_CHOSEN,
        "num_experts": NUM_EXPERTS,
        "num_shared_experts": 0,
        "pad_token_id": 1,
        "qkv_proj_bias": True,
        "type_vocab_size": 1,
    }
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB_SIZE, HIDDEN_SIZE),
        "embeddings.token_type_embeddings.weight": (1, HIDDEN_SIZE),
        "emb_ln.weight": (HIDDEN_SIZE,),
        "emb_ln.bias": (HIDDEN_SIZE,),
    }
    for index in range(NUM_LAYERS):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in _moe_layer(index).items()}
    generator = torch.Generator().manual_seed(6)
    tensors = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = drawn * (0.3 if len(shape) > 1 else 0.2) + is_norm
    return Published(
        config=published,
        tensors=tensors,
        tokenizer=bert_tokenizer,
        head=HeadSpec(modules=(), max_seq_length=MAX_LENGTH),
    )


def _moe_layer(index: int) -> dict[str, tuple[int, ...]]:
    hidden, inner = HIDDEN_SIZE, INNER_SIZE
    shapes: dict[str, tuple[int, ...]] = {
        "attn.Wqkv.weight": (3 * hidden, hidden),
        "attn.Wqkv.bias": (3 * hidden,),
        "attn.out_proj.weight": (hidden, hidden),
        "attn.out_proj.bias": (hidden,),
        **{f"norm{number}.{part}": (hidden,) for number in (1, 2) for part in ("weight", "bias")},
    }
    if index % 2 == 0:
        return {
            **shapes,
            "mlp.fc1.weight": (inner, hidden),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (hidden, inner),
            "mlp.fc2.bias": (hidden,),
        }
    return {
        **shapes,
        "mlp.router.layer.weight": (NUM_EXPERTS, hidden),
        "mlp.experts.mlp.w1": (NUM_EXPERTS * inner, hidden),
        "mlp.experts.mlp.w2": (NUM_EXPERTS * inner, hidden),
        "mlp.experts.bias": (hidden,),
    }
