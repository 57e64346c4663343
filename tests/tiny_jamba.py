"""A tiny seeded Jamba: Mamba layers, attention and experts."""

from __future__ import annotations

from pathlib import Path

from architecture_graphs import MAX_LENGTH
from tiny_decoders import draw_wide
from tiny_heads import TINY_BACKBONES
from tiny_models import VOCAB_SIZE
from transformers import JambaConfig, JambaForSequenceClassification

NUM_LABELS = 2


def save(folder: Path) -> Path:
    """A Mamba layer, then attention; every other feed-forward layer a mixture of four experts, two of them chosen."""
    config = JambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=0,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=16,
        mamba_dt_rank=16,
        use_mamba_kernels=False,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=0,
        num_labels=NUM_LABELS,
    )
    draw_wide(JambaForSequenceClassification(config), seed=4).save_pretrained(folder)
    tokenizer = TINY_BACKBONES["LlamaModel"].tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    return folder
