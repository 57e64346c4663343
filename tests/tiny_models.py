"""Tiny seeded checkpoints of real configuration classes, saved as publishers do, with tokenizers made here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    DistilBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from poolgraph.export.calibration_texts import read_calibration
from poolgraph.export.probes import PROBE_SENTENCES

VOCAB_SIZE = 400
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """A row of the table of tiny checkpoints: how its config is made and which tokenizer it has."""

    architecture: str
    config: Callable[[], PretrainedConfig]
    tokenizer: Callable[[], PreTrainedTokenizerFast]


def _words() -> list[str]:
    return [*PROBE_SENTENCES, "poolgraph embeds texts of any length", "a quick brown fox jumps over the lazy dog"] * 3


def _split(normalizer: Any, pre_tokenizer: Any) -> tuple[list[str], list[str]]:
    """Return the letters and the words of ``_words``, each once, in order.

    The tokenizers of WordPiece and Unigram are built of them: the library's trainers for these two come out otherwise
    in every process, and so would every answer of a tiny model.
    """
    texts = [normalizer.normalize_str(text) if normalizer else text for text in [*_words(), "0123456789"]]
    words = [word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text)]
    return sorted(set("".join(words))), list(dict.fromkeys(words))


def _halves(words: Sequence[str], mark: str) -> list[str]:
    """Return every word with its two halves, the second one behind ``mark``."""
    return [
        part
        for word in words
        for part in (word, word[: (len(word) + 1) // 2], mark + word[(len(word) + 1) // 2 :])
        if part != mark
    ]


def bert_tokenizer(
    model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask"),
) -> PreTrainedTokenizerFast:
    """WordPiece, [CLS] text [SEP], lower-cased; of letters, words and their halves."""
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    found, words = _split(normalizer, pre_tokenizer)
    pieces = [*BERT_TOKENS, *found, *(f"##{letter}" for letter in found), *_halves(words, "##")]
    vocabulary = {piece: index for index, piece in enumerate(list(dict.fromkeys(pieces))[:VOCAB_SIZE])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(list(BERT_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=list(model_input_names),
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, <s> text </s>, case kept."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        _words(),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(ROBERTA_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return _roberta_fast(tokenizer, decoders.ByteLevel())


def xlm_roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram with word-boundary marks, <s> text </s>, case kept."""
    pre_tokenizer = pre_tokenizers.Metaspace()
    found, words = _split(None, pre_tokenizer)
    scores = dict.fromkeys(ROBERTA_TOKENS, 0.0) | dict.fromkeys(found, -10.0)
    for piece in _halves(words, ""):
        scores.setdefault(piece, -5.0 - len(scores) / VOCAB_SIZE)
    pieces = list(scores.items())[:VOCAB_SIZE]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=ROBERTA_TOKENS.index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(list(ROBERTA_TOKENS))
    return _roberta_fast(tokenizer, decoders.Metaspace())


def _roberta_fast(tokenizer: Tokenizer, decoder: Any) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


TINY_MODELS: Mapping[str, TinyModel] = {
    "BertModel": TinyModel(
        architecture="BertModel",
        config=lambda: BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=128, pad_token_id=0, **SIZES),
        tokenizer=bert_tokenizer,
    ),
    "RobertaModel": TinyModel(
        architecture="RobertaModel",
        config=lambda: RobertaConfig(
            vocab_size=VOCAB_SIZE, max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, **SIZES
        ),
        tokenizer=roberta_tokenizer,
    ),
    "XLMRobertaModel": TinyModel(
        architecture="XLMRobertaModel",
        config=lambda: XLMRobertaConfig(
            vocab_size=VOCAB_SIZE, max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, **SIZES
        ),
        tokenizer=xlm_roberta_tokenizer,
    ),
    "DistilBertModel": TinyModel(
        architecture="DistilBertModel",
        config=lambda: DistilBertConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=128,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            pad_token_id=0,
        ),
        tokenizer=lambda: bert_tokenizer(("input_ids", "attention_mask")),
    ),
    "MPNetModel": TinyModel(
        architecture="MPNetModel",
        config=lambda: MPNetConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=130, pad_token_id=1, **SIZES),
        tokenizer=roberta_tokenizer,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """Sentence-transformers' files beside the backbone; ``modules`` are (class name, configuration, tensors)."""

    pooling: Mapping[str, Any] = field(default_factory=lambda: {"pooling_mode_mean_tokens": True})
    modules: Sequence[tuple[str, Mapping[str, Any], Mapping[str, torch.Tensor]]] = (("Normalize", {}, {}),)
    max_seq_length: int | None = 128
    do_lower_case: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, name: str, head: HeadSpec | None = HeadSpec(), *, seed: int = 0, **save_options: Any
) -> Path:
    """Save a tiny checkpoint; weights are drawn wide enough that attention is far from uniform."""
    import transformers

    torch.manual_seed(seed)
    tiny = TINY_MODELS[name]
    config = tiny.config()
    model = getattr(transformers, tiny.architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2) + (parameter.dim() == 1)
            )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, **save_options)
    tiny.tokenizer().save_pretrained(folder)
    if head is not None:
        save_head(folder, head, config.hidden_size)
    return folder


SHRINK = 0.3
"""What ``tame`` multiplies the layers' weights by."""


def tame(file: Path) -> None:
    """Shrink the layers' weights, which are drawn wide, so that a percent of error in a layer stays a percent."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    layers = {name: it * SHRINK for name, it in tensors.items() if it.dim() > 1 and re.search(r"\.\d+\.", name)}
    save_file({**tensors, **layers}, file, metadata={"format": "pt"})


def few_calibration_texts(folder: Path) -> Path:
    """Write every third of the texts that ship: enough for models of two layers, in a third of the time."""
    file = folder / "calibration.txt"
    file.write_text("\n".join(text.replace("\n", " ") for text in read_calibration(None).texts[::3]), encoding="utf-8")
    return file


def save_head(folder: Path, head: HeadSpec, hidden_size: int) -> None:
    """Write modules.json and what it names."""
    from safetensors.torch import save_file

    rows = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": False, **head.pooling}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    for index, (kind, config, tensors) in enumerate(head.modules, start=2):
        path = f"{index}_{kind}"
        rows.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        _write_json(folder / path / "config.json", dict(config))
        if tensors:
            save_file(dict(tensors), folder / path / "model.safetensors")
    _write_json(folder / "modules.json", rows)
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": head.max_seq_length, "do_lower_case": head.do_lower_case},
    )
    _write_json(folder / "config_sentence_transformers.json", dict(head.settings))


def dense(
    in_features: int, out_features: int, activation: str = "torch.nn.modules.activation.Tanh", *, seed: int = 1
) -> tuple[str, Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Return a Dense module of a HeadSpec with seeded weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "linear.weight": torch.randn(out_features, in_features, generator=generator) * 0.3,
        "linear.bias": torch.randn(out_features, generator=generator) * 0.3,
    }
    config = {"in_features": in_features, "out_features": out_features, "bias": True, "activation_function": activation}
    return "Dense", config, tensors


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
