"""Tiny seeded decoders and encoders with windows: grouped heads, rotary positions, softcap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_models import VOCAB_SIZE, TinyModel, _words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DeepseekV3Config,
    EuroBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

END, BEGIN = "<|endoftext|>", "<bos>"
MAX_LENGTH = 128
WINDOW = 8
"""Of the layers with a window: short, so that most texts exceed it."""

SPECIAL_IDS = {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 1}
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    **SPECIAL_IDS,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LAYER_TYPES = ["sliding_attention", "full_attention"]


def decoder_tokenizer(*, begin: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE that ends each text with <|endoftext|>, as Qwen3-Embedding does; ``begin`` adds <bos>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        _words(),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[END, BEGIN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    first = f"{BEGIN} " if begin else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A {END}",
        pair=f"{first}$A {END} {first}$B:1 {END}:1",
        special_tokens=[(END, 0), (BEGIN, 1)],
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        bos_token=BEGIN if begin else None,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def _row(architecture: str, config: Callable[[], PretrainedConfig], *, begin: bool = False) -> TinyModel:
    return TinyModel(architecture=architecture, config=config, tokenizer=lambda: decoder_tokenizer(begin=begin))


TINY_DECODERS: Mapping[str, TinyModel] = {
    row.architecture: row
    for row in (
        _row("Qwen2Model", lambda: Qwen2Config(**SIZES)),
        _row("Qwen3Model", lambda: Qwen3Config(head_dim=16, **SIZES)),
        _row("LlamaModel", lambda: LlamaConfig(**SIZES), begin=True),
        _row("MistralModel", lambda: MistralConfig(sliding_window=WINDOW, **SIZES), begin=True),
        _row("GemmaModel", lambda: GemmaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=16), begin=True),
        _row(
            "Gemma2Model",
            lambda: Gemma2Config(
                **SIZES,
                head_dim=16,
                query_pre_attn_scalar=24,
                attn_logit_softcapping=5.0,
                sliding_window=WINDOW,
                layer_types=LAYER_TYPES,
            ),
            begin=True,
        ),
        _row(
            "Gemma3TextModel",
            lambda: Gemma3TextConfig(
                **{**SIZES, "num_key_value_heads": 1},
                head_dim=16,
                query_pre_attn_scalar=24,
                sliding_window=WINDOW,
                layer_types=LAYER_TYPES,
                use_bidirectional_attention=True,
            ),
            begin=True,
        ),
        _row(
            "ModernBertModel",
            lambda: ModernBertConfig(
                **{key: size for key, size in SIZES.items() if key != "num_key_value_heads"},
                cls_token_id=1,
                sep_token_id=0,
                local_attention=WINDOW,
                layer_types=["full_attention", "sliding_attention"],
            ),
            begin=True,
        ),
        _row("Qwen3MoeModel", lambda: Qwen3MoeConfig(head_dim=16, num_experts=4, **EXPERTS, **SIZES)),
        _row(
            "DeepseekV3Model",
            lambda: DeepseekV3Config(
                **{**SIZES, "num_key_value_heads": 4},
                **EXPERTS,
                n_routed_experts=8,
                n_group=4,
                topk_group=2,
                first_k_dense_replace=1,
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                v_head_dim=8,
            ),
            begin=True,
        ),
        _row("EuroBertModel", lambda: EuroBertConfig(**SIZES), begin=True),
        _row(
            "Lfm2Model",
            lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
            begin=True,
        ),
        _row(
            "GPT2Model",
            lambda: GPT2Config(
                vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=MAX_LENGTH, **SPECIAL_IDS
            ),
        ),
    )
}


def build_decoder(
    name: str, cls: str | None = None, *, seed: int = 0, attention: str = "eager", **config_changes: Any
) -> PreTrainedModel:
    """Build a seeded model of row ``name``; weights are drawn wide enough that attention is far from uniform."""
    import transformers

    tiny = TINY_DECODERS[name]
    config = tiny.config()
    for key, value in config_changes.items():
        setattr(config, key, value)
    model_class = getattr(transformers, cls or tiny.architecture)
    return draw_wide(model_class._from_config(config, attn_implementation=attention), seed)


def draw_wide(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw a model's weights wide."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2) + (parameter.dim() == 1)
            )
    return model.eval()


def save_decoder(folder: Path, name: str, cls: str | None = None, seed: int = 0, **config_changes: Any) -> Path:
    """Save a checkpoint of row ``name`` as transformers class ``cls``, by default its backbone, with its tokenizer."""
    model = build_decoder(name, cls, seed=seed, **config_changes)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    TINY_DECODERS[name].tokenizer().save_pretrained(folder)
    return folder
