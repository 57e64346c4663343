"""Tiny seeded checkpoints with heads, as publishers save them: classifiers, rewards, language models, CrossEncoders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_decoders import SIZES as DECODER_SIZES
from tiny_decoders import SPECIAL_IDS, TINY_DECODERS, WINDOW, decoder_tokenizer
from tiny_models import SIZES, TINY_MODELS, VOCAB_SIZE, TinyModel, bert_tokenizer
from tokenizers import processors
from transformers import (
    AlbertConfig,
    ElectraConfig,
    GPTNeoConfig,
    OpenAIPrivacyFilterConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from poolgraph.config import parse_pooler_config
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import ExportOptions
from poolgraph.export.resolve import ExportPlan, resolve_plan

MORE_ENCODERS: Mapping[str, TinyModel] = {
    "ElectraModel": TinyModel(
        architecture="ElectraModel",
        config=lambda: ElectraConfig(
            vocab_size=VOCAB_SIZE, embedding_size=24, max_position_embeddings=128, pad_token_id=0, **SIZES
        ),
        tokenizer=bert_tokenizer,
    ),
    "AlbertModel": TinyModel(
        architecture="AlbertModel",
        config=lambda: AlbertConfig(
            vocab_size=VOCAB_SIZE, embedding_size=24, max_position_embeddings=128, pad_token_id=0, **SIZES
        ),
        tokenizer=bert_tokenizer,
    ),
    "GPTNeoModel": TinyModel(
        architecture="GPTNeoModel",
        config=lambda: GPTNeoConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
            **SPECIAL_IDS,
        ),
        tokenizer=lambda: decoder_tokenizer(begin=False),
    ),
    "OpenAIPrivacyFilterModel": TinyModel(
        architecture="OpenAIPrivacyFilterModel",
        config=lambda: OpenAIPrivacyFilterConfig(
            **DECODER_SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW
        ),
        tokenizer=lambda: decoder_tokenizer(begin=False),
    ),
}
"""Encoders and decoders with attention of their own, or classifiers above all."""

TINY_BACKBONES: Mapping[str, TinyModel] = {**TINY_MODELS, **TINY_DECODERS, **MORE_ENCODERS}

PAIR_TEMPLATE = (
    "{% for role in ['query', 'document'] %}{% for message in messages if message.role == role %}"
    "{{ role }} {{ message.content }}\n{% endfor %}{% endfor %}answer "
)
"""A chat template for the roles of a pair, as causal rerankers of sentence-transformers have one."""

SYSTEM_TEMPLATE = (
    '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("judge") }}\n'
    '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}\nanswer '
)
"""A chat template as the documentation of sentence-transformers writes it: a prompt is the system message."""

STEP_TAG = "<extra_0>"
"""The token after each step of a process reward, as Qwen2.5-Math-PRM has it."""
STEP_TAG_ID = VOCAB_SIZE


def build_model(name: str, cls: str, *, seed: int = 0, num_layers: int = 1, **config_changes: Any) -> PreTrainedModel:
    """Build transformers class ``cls`` over the backbone called ``name``, its weights drawn wide.

    One layer does for what is asked of a head, and is traced in half the time.
    """
    import transformers

    config = TINY_BACKBONES[name].config()
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    for key, value in config_changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, cls)(config)
    widen(model)
    return model.eval()


def widen(model: torch.nn.Module) -> None:
    """Draw weights so wide that attention is far from uniform and answers of different texts differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2) + (parameter.dim() == 1)
            )


def save_model(
    folder: Path,
    name: str,
    cls: str,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 128,
    **changes: Any,
) -> Path:
    """Save a checkpoint of transformers class ``cls`` with a tokenizer, the backbone's own where none is given."""
    build_model(name, cls, seed=seed, **changes).save_pretrained(folder)
    chosen = tokenizer or TINY_BACKBONES[name].tokenizer()
    chosen.model_max_length = max_length
    chosen.save_pretrained(folder)
    return folder


def step_tokenizer() -> PreTrainedTokenizerBase:
    """Return a decoder's tokenizer that knows STEP_TAG; its model needs a vocabulary larger by one."""
    tokenizer = TINY_DECODERS["LlamaModel"].tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [STEP_TAG]})
    return tokenizer


def pair_tokenizer(chat_template: str | None = PAIR_TEMPLATE) -> PreTrainedTokenizerBase:
    """Return a decoder's tokenizer that adds no special tokens, as Qwen's, with a chat template."""
    tokenizer = TINY_DECODERS["Qwen3Model"].tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.chat_template = chat_template
    return tokenizer


def yes_no_vocabulary() -> tuple[str, str]:
    """Return two single tokens of the decoders' vocabulary, false and true."""
    return "A", "a"


def save_reward_model(folder: Path, architecture: str, num_labels: int, *, seed: int = 0, **changes: Any) -> Path:
    """Save a Qwen2 reward model, whose class only its publisher has: a backbone under ``model.`` and two layers."""
    save_model(folder, "Qwen2Model", "Qwen2Model", seed=seed, **changes)
    file = folder / "model.safetensors"
    size = SIZES["hidden_size"]
    tensors = {f"model.{name}": tensor for name, tensor in load_file(file).items()}
    tensors |= {
        "score.0.weight": torch.randn(size, size) * 0.3,
        "score.0.bias": torch.randn(size) * 0.3,
        "score.2.weight": torch.randn(num_labels, size) * 0.3,
        "score.2.bias": torch.randn(num_labels) * 0.3,
    }
    save_file(tensors, file, metadata={"format": "pt"})
    change_json(folder / "config.json", architectures=[architecture], num_labels=num_labels)
    return folder


def save_cross_encoder(folder: Path, source: Path, **options: Any) -> Path:
    """Save a classifier as sentence-transformers' CrossEncoder does it."""
    from sentence_transformers import CrossEncoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CrossEncoder(str(source), device="cpu", **options).save_pretrained(str(folder))
    return folder


def save_logit_score(
    folder: Path,
    source: Path,
    *,
    true_token_id: int,
    false_token_id: int | None,
    processing_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Save a causal language model as a CrossEncoder that reads its score off one or two tokens."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [
            Transformer(str(source), transformer_task="text-generation", processing_kwargs=processing_kwargs),
            LogitScore(true_token_id=true_token_id, false_token_id=false_token_id),
        ]
        CrossEncoder(modules=modules, device="cpu", **options).save_pretrained(str(folder))
    return folder


def change_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a key whose value is None is taken out."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content |= changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def plan_of(folder: Path, *, pooler_config: Mapping[str, Any] | None = None, **options: Any) -> ExportPlan:
    """Resolve a checkpoint as ``export_model`` does, for the CPU in float32."""
    return resolve_plan(
        open_checkpoint(folder),
        options=ExportOptions(pooler_config=parse_pooler_config(pooler_config), **options),
        precisions=("fp32",),
        targets=("cpu",),
        trust_remote_code=False,
    )
