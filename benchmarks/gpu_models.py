"""Models of the GPU benchmark: shapes of known models with seeded weights, a tokenizer trained on the spot, no network.

Run as a script with a model's name to write its checkpoint and poolgraph's artifact of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import MAX_SEQ_LENGTH, SEED, ModelPaths, write_json, write_modules

EXPORT_MEMORY_GIB = 0.5
"""So little that the export verifies a model's first layers alone: the benchmark checks every answer itself."""

FIRST_WORD, SMALLEST_VOCABULARY = 5, 2000
_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """A shape to measure.

    Attributes:
        description: What it is, for the report.
        model_type: transformers' name of the architecture.
        config: What differs from the architecture's defaults.
        pooling: sentence-transformers' name of the pooling method, without ``pooling_mode_``.
        is_gated: Whether the feed-forward layers have a gate beside their first product.
        is_causal: Whether a token sees those to its left only.
    """

    description: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "mean_tokens"
    is_gated: bool = False
    is_causal: bool = False


def _bert(layers: int, hidden: int, heads: int, inner: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }


MODELS: Mapping[str, GpuModel] = {
    "bert-base": GpuModel(description="BERT-base shape", model_type="bert", config=_bert(12, 768, 12, 3072)),
    "minilm": GpuModel(description="MiniLM-L6 shape", model_type="bert", config=_bert(6, 384, 12, 1536)),
    "qwen3-0.6b": GpuModel(
        description="Qwen3-0.6B shape",
        model_type="qwen3",
        config=_bert(28, 1024, 16, 3072)
        | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True},
        pooling="lasttoken",
        is_gated=True,
        is_causal=True,
    ),
    "bert-large": GpuModel(
        description="BERT-large shape", model_type="bert", config=_bert(24, 1024, 16, 4096), pooling="cls_token"
    ),
    "modernbert-base": GpuModel(
        description="ModernBERT-base shape",
        model_type="modernbert",
        config=_bert(22, 768, 12, 1152) | _SPECIAL_IDS,
        pooling="cls_token",
        is_gated=True,
    ),
    "tiny": GpuModel(
        description="2-layer BERT shape, to try the benchmark",
        model_type="bert",
        config=_bert(2, 64, 4, 128) | {"vocab_size": SMALLEST_VOCABULARY},
    ),
    "tiny-qwen3": GpuModel(
        description="2-layer Qwen3 shape, to try the benchmark",
        model_type="qwen3",
        config=_bert(2, 64, 4, 128) | {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": SMALLEST_VOCABULARY},
        pooling="lasttoken",
        is_gated=True,
        is_causal=True,
    ),
    "tiny-modernbert": GpuModel(
        description="4-layer ModernBERT shape, to try the benchmark",
        model_type="modernbert",
        config=_bert(4, 64, 4, 128) | _SPECIAL_IDS | {"vocab_size": SMALLEST_VOCABULARY, "local_attention": 32},
        pooling="cls_token",
        is_gated=True,
    ),
}
"""In the order of their importance: what comes first is measured first."""


def build_config(row: GpuModel) -> Any:
    """Return the model's configuration."""
    from transformers import AutoConfig

    return AutoConfig.for_model(row.model_type, **row.config)


def count_flops(row: GpuModel, config: Any, lengths: Sequence[int]) -> float:
    """Return the operations of texts of these lengths, a product and a sum being two; norms and the like left out.

    Per token and layer: two a weight, and four a number of the query for every token that attention sees; causal
    attention sees half of them, ModernBERT's local layers at most ``local_attention``.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    feed_forward = (3 if row.is_gated else 2) * hidden * config.intermediate_size
    weights = 2 * (attention + feed_forward) * config.num_hidden_layers
    seen = [_local_reach(config, layer) for layer in range(config.num_hidden_layers)]
    share = 0.5 if row.is_causal else 1.0
    scores = 4 * heads * head_dim * share
    return float(sum(length * (weights + scores * sum(min(length, reach) for reach in seen)) for length in lengths))


def _local_reach(config: Any, layer: int) -> int:
    kinds = getattr(config, "layer_types", None)
    is_local = kinds is not None and kinds[layer] == "sliding_attention"
    return int(config.local_attention) if is_local else MAX_SEQ_LENGTH


def prepare_model(name: str, paths: ModelPaths, device: str, precisions: Sequence[str] = ("fp32",)) -> None:
    """Write the checkpoint and the artifact where they are missing; ``precisions`` are those for a processor."""
    if not paths.checkpoint_dir.exists():
        partial = paths.checkpoint_dir.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_checkpoint(MODELS[name], partial)
        partial.rename(paths.checkpoint_dir)
    if not paths.artifact_dir.exists():
        export_artifact(paths, device, precisions)


def export_artifact(paths: ModelPaths, device: str, precisions: Sequence[str] = ("fp32",)) -> None:
    """Export the checkpoint; for a GPU without cuBLASLt's products where those do not pass verification."""
    from poolgraph.errors import PoolgraphError
    from poolgraph.export.exporter import export_model

    def export(*targets: str, precisions: Sequence[str], max_memory: float | None = None) -> None:
        options = {"targets": targets, "precisions": tuple(precisions), "max_memory": max_memory}
        export_model(paths.checkpoint_dir, paths.artifact_dir, task="embed", **options)

    if device == "cpu":
        export("cpu", precisions=precisions)
        return
    try:
        export("cuda", "cublaslt", precisions=("fp16",), max_memory=EXPORT_MEMORY_GIB)
    except PoolgraphError as error:
        print(f"exported without cuBLASLt's products, since {error}", file=sys.stderr)
        export("cuda", precisions=("fp16",), max_memory=EXPORT_MEMORY_GIB)


def write_checkpoint(row: GpuModel, output_dir: Path) -> None:
    """Write the model with seeded weights, a tokenizer, and sentence-transformers' files."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(SEED)
    model = AutoModel.from_config(build_config(row), dtype=torch.float32).eval()
    model.save_pretrained(output_dir)
    build_tokenizer(row).save_pretrained(output_dir)
    write_modules(output_dir, model.config.hidden_size, row.pooling)
    write_json(output_dir / "sentence_bert_config.json", {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False})


def build_tokenizer(row: GpuModel) -> Any:
    """Return a WordPiece tokenizer trained on the calibration texts that ship with poolgraph."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=SMALLEST_VOCABULARY, special_tokens=list(_TOKENS), show_progress=False, limit_alphabet=200
    )
    tokenizer.train_from_iterator(read_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    has_types = row.model_type == "bert"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), _TOKENS, strict=True)},
        model_max_length=MAX_SEQ_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"],
    )


def read_texts() -> list[str]:
    """Return the calibration texts that ship with poolgraph."""
    from importlib.resources import files

    lines = files("poolgraph.export").joinpath("calibration_texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32"], help="of --device cpu")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_model(options.model, ModelPaths(model_dir=options.model_dir), options.device, options.precision)


if __name__ == "__main__":
    main()
