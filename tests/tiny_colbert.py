"""Tiny seeded late-interaction checkpoints as publishers save them: Stanford, PyLate, sentence-transformers."""

from __future__ import annotations

import json
import random
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import SIZES, bert_tokenizer
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertModel,
    Lfm2Config,
    Lfm2Model,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from poolgraph.export.probes import PROBE_SENTENCES

MARKERS = ("[unused0]", "[unused1]")
HIDDEN_SIZE = 32
VECTOR_SIZE = 16
MAX_LENGTH = 128
IDENTITY = "torch.nn.modules.linear.Identity"


def colbert_tokenizer(words: Sequence[str] = MARKERS, max_length: int = MAX_LENGTH) -> PreTrainedTokenizerFast:
    """Return a lower-casing WordPiece tokenizer whose vocabulary has ``words`` and all punctuation."""
    base = bert_tokenizer()
    content = json.loads(base.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for word in (*words, *string.punctuation):
        vocab.setdefault(word, len(vocab))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{name: base.special_tokens_map[name] for name in base.special_tokens_map},
    )


def build_backbone(vocab_size: int, seed: int = 0, *, max_length: int = MAX_LENGTH) -> BertModel:
    """Build a BERT whose weights are drawn wide enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=vocab_size, max_position_embeddings=max_length, pad_token_id=0, **SIZES)
    return _draw(BertModel(config).eval())


def build_modern_backbone(
    local_attention: int, vocab_size: int, seed: int = 0, *, max_length: int = MAX_LENGTH
) -> ModernBertModel:
    """Build a ModernBERT, likewise."""
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=vocab_size,
        max_position_embeddings=max_length,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        local_attention=local_attention,
        global_attn_every_n_layers=2,
        **SIZES,
    )
    return _draw(ModernBertModel(config).eval())


def build_lfm2(vocab_size: int, seed: int = 0, *, max_length: int = MAX_LENGTH) -> Lfm2Model:
    """Build an LFM2, likewise."""
    torch.manual_seed(seed)
    config = Lfm2Config(
        vocab_size=vocab_size,
        max_position_embeddings=max_length,
        layer_types=["conv", "full_attention"],
        num_key_value_heads=2,
        block_auto_adjust_ff_dim=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **SIZES,
    )
    return _draw(Lfm2Model(config).eval())


def projection(size: int = VECTOR_SIZE, seed: int = 1) -> torch.Tensor:
    """Return the weight of a projection, (size, HIDDEN_SIZE)."""
    return torch.randn(size, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed)) * 0.3


def save_stanford(
    folder: Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    name: str = "linear.weight",
    max_length: int = MAX_LENGTH,
) -> Path:
    """Save as Stanford's code does: ``bert.`` before the backbone's tensors, the projection beside them."""
    tokenizer = colbert_tokenizer(max_length=max_length)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    model = build_backbone(len(tokenizer), max_length=max_length)
    save_file(
        {**{f"bert.{key}": value for key, value in model.state_dict().items()}, name: projection()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_json(folder / "config.json", {**model.config.to_dict(), "architectures": ["HF_ColBERT"]})
    if metadata is not None:
        write_json(folder / "artifact.metadata", metadata)
    return folder


def save_pylate(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    transformer: Mapping[str, Any] | None = None,
    build: Callable[..., PreTrainedModel] = build_backbone,
    max_length: int = MAX_LENGTH,
) -> Path:
    """Save as PyLate does: markers as added tokens, options of the whole model, a Dense of its own class.

    ``build`` makes the backbone of the size of a vocabulary and ``max_length``.
    """
    tokenizer = colbert_tokenizer(max_length=max_length)
    tokenizer.add_tokens(["[Q] ", "[D] "])
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    build(len(tokenizer), max_length=max_length).save_pretrained(folder)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False, **(transformer or {})}
    )
    write_json(folder / "config_sentence_transformers.json", settings)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ],
    )
    write_json(
        folder / "1_Dense" / "config.json",
        {"in_features": HIDDEN_SIZE, "out_features": VECTOR_SIZE, "bias": False, "activation_function": IDENTITY},
    )
    save_file({"linear.weight": projection()}, folder / "1_Dense" / "model.safetensors")
    return folder


def save_native(
    folder: Path,
    *,
    prompts: Mapping[str, str] | None = None,
    similarity: str = "maxsim",
    normalize: bool = True,
    mask: Mapping[str, Any] | None = None,
    **transformer: Any,
) -> Path:
    """Save with sentence-transformers' own MultiVectorEncoder."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    backbone = folder.with_name(f"{folder.name}-backbone")
    tokenizer = colbert_tokenizer()
    tokenizer.save_pretrained(backbone)
    build_backbone(len(tokenizer)).save_pretrained(backbone)
    dense = Dense(
        HIDDEN_SIZE,
        VECTOR_SIZE,
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=projection(),
        module_input_name="token_embeddings",
    )
    modules = [Transformer(str(backbone), **transformer), dense, MultiVectorMask(**(mask or {}))]
    if normalize:
        modules.append(Normalize(module_input_name="token_embeddings"))
    model = MultiVectorEncoder(
        modules=modules, device="cpu", prompts=dict(prompts or {}), similarity_fn_name=similarity
    )
    model.save_pretrained(str(folder))
    return folder


def load_oracle(folder: Path) -> Any:
    """Load a checkpoint with sentence-transformers' MultiVectorEncoder."""
    from sentence_transformers import MultiVectorEncoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MultiVectorEncoder(str(folder), device="cpu")


def mixed_texts(num_texts: int = 40, *, seed: int = 0, longest: int = 60) -> list[str]:
    """Return texts from none to ``longest`` words with punctuation, markers and brackets among them."""
    source = random.Random(seed)
    words = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
    marks = [*string.punctuation, "[Q]", "[MASK]", "[unused1]", "..."]
    texts = []
    for index in range(num_texts):
        length = round(longest * (index / (num_texts - 1)) ** 2)
        texts.append(" ".join(source.choice(words) + source.choice(["", "", *marks]) for _ in range(length)))
    source.shuffle(texts)
    return [*texts, "a", "?!", " . , ;"]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _draw(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2) + (parameter.dim() == 1)
            )
    return model
