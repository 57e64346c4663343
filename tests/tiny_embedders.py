"""Tiny seeded embedders as they are published, with code and names that transformers lacks, and their oracles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_graphs import MAX_LENGTH, TextOracle
from safetensors.torch import load_file, save_file
from tiny_decoders import SIZES, SPECIAL_IDS, decoder_tokenizer, draw_wide
from tiny_heads import change_json
from tiny_llamas import both_sides_rows, save_long
from tiny_models import VOCAB_SIZE, HeadSpec, dense, save_head
from torch import Tensor

HIDDEN_SIZE = SIZES["hidden_size"]
PROJECTED = 48
RANK, ALPHA = 4, 6
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def save_voyage(folder: Path, *, projected: bool = True) -> TextOracle:
    """Save as Voyage does: Qwen3 under ``model.``, a matrix beside it, MEAN pooling; return what it embeds."""
    save_long(folder, "Qwen3Model")
    rows = both_sides_rows(folder, "Qwen3Model")
    matrix = torch.randn(PROJECTED, HIDDEN_SIZE, generator=torch.Generator().manual_seed(5)) * 0.3
    tensors = {f"model.{name}": it for name, it in load_file(folder / "model.safetensors").items()}
    tensors |= {"linear.weight": matrix} if projected else {}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_json(
        folder / "config.json",
        architectures=["VoyageQwen3BidirectionalEmbedModel" if projected else "Qwen3Model"],
        auto_map={"AutoModel": "modeling_qwen3_bidirectional.Qwen3BidirectionalModel"},
        num_labels=PROJECTED,
        use_bidirectional_attention=True,
    )
    _save_files(folder, "pooling_mode_mean_tokens")
    return lambda inputs: (rows(inputs) @ matrix.T if projected else rows(inputs)).mean(0)


def save_jina_v5(folder: Path, name: str, task: str) -> TextOracle:
    """Save as jina-embeddings-v5-text: a backbone and two adapters in files of peft's; return what ``task`` embeds."""
    save_long(folder, name)
    model: Any = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    for seed, adapter in enumerate(("retrieval", "text-matching")):
        matrices = _save_adapter(folder / "adapters" / adapter, model, seed)
        if adapter == task:
            _merge(model, matrices)
    change_json(
        folder / "config.json",
        architectures=["JinaEmbeddingsV5Model"],
        auto_map={"AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model"},
        model_type="jina_embeddings_v5",
        is_decoder=False if name == "EuroBertModel" else None,
    )
    _save_files(folder, "pooling_mode_lasttoken", transformer="custom_st.Transformer")
    return lambda inputs: model.eval()(**inputs).last_hidden_state[0, -1]


def _save_adapter(folder: Path, model: Any, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, module in model.named_modules():
        if name.endswith(ADAPTED):
            shapes = (RANK, module.in_features), (module.out_features, RANK)
            matrices[name] = tuple(torch.randn(shape, generator=source) * 0.2 for shape in shapes)
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": matrix
        for name, pair in matrices.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "rank_pattern": {},
        "use_dora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return matrices


def _merge(model: Any, matrices: dict[str, tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for name, (down, up) in matrices.items():
            model.get_submodule(name).weight += up @ down * ALPHA / RANK


def save_giga(folder: Path) -> TextOracle:
    """Save as Giga-Embeddings: DeepSeek V3 that reads both ways, MEAN pooling; return what it embeds."""
    save_long(folder, "DeepseekV3Model")
    rows = both_sides_rows(folder, "DeepseekV3Model")
    change_json(folder / "config.json", architectures=["DeepseekV3BidirectionalModel"], is_causal=False)
    _save_files(folder, "pooling_mode_mean_tokens")
    return lambda inputs: rows(inputs).mean(0)


def save_t5(folder: Path, family: str = "T5") -> TextOracle:
    """Save as sentence-t5: the encoder alone, MEAN pooling and a Dense without a bias; return what it embeds."""
    model_class = getattr(transformers, f"{family}EncoderModel")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB_SIZE, d_model=HIDDEN_SIZE, d_kv=16, d_ff=64, num_layers=2, num_heads=4, **SPECIAL_IDS
    )
    draw_wide(model_class(config), seed=2).save_pretrained(folder)
    tokenizer = decoder_tokenizer(begin=False)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    kind, settings, tensors = dense(HIDDEN_SIZE, PROJECTED, "torch.nn.modules.linear.Identity")
    matrix = tensors["linear.weight"]
    layer = kind, {**settings, "bias": False}, {"linear.weight": matrix}
    save_head(folder, HeadSpec(modules=(layer, ("Normalize", {}, {})), max_seq_length=MAX_LENGTH), HIDDEN_SIZE)
    model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    return lambda inputs: model(**inputs).last_hidden_state[0].mean(0) @ matrix.T


def save_lfm2(folder: Path) -> TextOracle:
    """Save as LFM2.5-Embedding, CLS pooling; return what it embeds."""
    save_long(folder, "Lfm2Model")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change_json(
        folder / "config.json",
        architectures=["Lfm2BidirectionalModel"],
        auto_map={"AutoModel": "modeling_lfm2_bidirectional.Lfm2BidirectionalModel"},
    )
    _save_files(folder, "pooling_mode_cls_token")
    return lambda inputs: centred_rows(config, tensors, inputs["input_ids"][0])[0]


def centred_rows(config: dict[str, Any], tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """LFM2 reading both ways, (num_tokens,) to (num_tokens, hidden_size), in float64 from the tensors alone."""
    weights = {name: it.double() for name, it in tensors.items()}
    rows = weights["embed_tokens.weight"][ids]
    for index, kind in enumerate(config["layer_types"]):
        layer = {name.removeprefix(f"layers.{index}."): it for name, it in weights.items()}
        mix = _convolve if kind == "conv" else _attend
        rows = rows + mix(_norm(rows, layer["operator_norm.weight"], config), layer, config)
        normed = _norm(rows, layer["ffn_norm.weight"], config)
        gate = torch.nn.functional.silu(normed @ layer["feed_forward.w1.weight"].T)
        rows = rows + (gate * (normed @ layer["feed_forward.w3.weight"].T)) @ layer["feed_forward.w2.weight"].T
    return _norm(rows, weights["embedding_norm.weight"], config)


def _norm(rows: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return rows / (rows.pow(2).mean(-1, keepdim=True) + config["norm_eps"]).sqrt() * weight


def _convolve(rows: Tensor, layer: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """Each channel is summed over the token before, the token itself and the one after."""
    first, second, values = (rows @ layer["conv.in_proj.weight"].T).chunk(3, -1)
    reach, kernel = config["conv_L_cache"] // 2, layer["conv.conv.weight"][:, 0]
    summed = torch.zeros_like(values)
    for token in range(len(rows)):
        for index in range(kernel.shape[1]):
            other = token + index - reach
            if 0 <= other < len(rows):
                summed[token] += kernel[:, index] * (first * values)[other]
    return (second * summed) @ layer["conv.out_proj.weight"].T


def _attend(rows: Tensor, layer: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    size = config["hidden_size"] // config["num_attention_heads"]
    heads = {}
    for name in "qkv":
        heads[name] = (rows @ layer[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, size)).transpose(0, 1)
        if name != "v":
            heads[name] = _rotate(_norm(heads[name], layer[f"self_attn.{name}_layernorm.weight"], config), config)
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    key, value = (heads[name].repeat_interleave(group, 0) for name in "kv")
    attended = (heads["q"] @ key.transpose(1, 2) / size**0.5).softmax(-1) @ value
    return attended.transpose(0, 1).flatten(1) @ layer["self_attn.out_proj.weight"].T


def _rotate(rows: Tensor, config: dict[str, Any]) -> Tensor:
    base, size = config["rope_parameters"]["rope_theta"], rows.shape[-1]
    angles = torch.outer(torch.arange(rows.shape[1]), base ** (-torch.arange(0, size, 2).double() / size))
    first, second = rows.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def _save_files(folder: Path, pooling: str, *, transformer: str | None = None) -> None:
    """Write sentence-transformers' files: one pooling mode, then Normalize."""
    flags = {"pooling_mode_mean_tokens": False, pooling: True}
    save_head(folder, HeadSpec(pooling=flags, max_seq_length=MAX_LENGTH), HIDDEN_SIZE)
    if transformer is not None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = transformer
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
