"""Checkpoints of the support table with the oracles of their raw answers: each maker saves one, returns the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from architecture_graphs import MAX_LENGTH, TextOracle
from head_oracles import Oracle
from internlm2_oracle import reward_rows
from nomic_moe_oracle import moe_rows
from safetensors.torch import load_file
from tiny_colbert import projection
from tiny_heads import save_model, save_reward_model, step_tokenizer
from tiny_llamas import (
    both_sides_rows,
    llama_config,
    save_bidirectional_llama,
    save_internlm,
    save_long,
    score_weight,
)
from tiny_models import VOCAB_SIZE, HeadSpec, dense, save_head
from tiny_nomic import publish_nomic_moe
from tiny_rotary import Published
from torch import Tensor

Maker = Callable[[Path], TextOracle]
"""Saves a checkpoint in a folder that is not there yet and returns the oracle of its texts' raw answers."""

Publish = Callable[[], Published]

IDENTITY = "torch.nn.modules.linear.Identity"
OFFSET_FAMILY = ("RobertaModel", "XLMRobertaModel")


def saved(save: Callable[[Path], object], oracle: Oracle) -> Maker:
    """A checkpoint, and an oracle that is loaded from it."""

    def make(folder: Path) -> TextOracle:
        save(folder)
        return oracle(folder)

    return make


def save_classic(name: str, cls: str, **changes: Any) -> Callable[[Path], Path]:
    """Save a class of transformers with two layers and positions for MAX_LENGTH tokens."""
    positions = MAX_LENGTH + (2 if name in OFFSET_FAMILY else 0)
    sizes: dict[str, Any] = {"num_layers": 2, "max_length": MAX_LENGTH, "max_position_embeddings": positions}
    return lambda folder: save_model(folder, name, cls, **sizes, **changes)


def rows_of(cls: str) -> Oracle:
    """Every token's row, (num_tokens, hidden_size), by transformers' class with eager attention."""

    def load(folder: Path) -> TextOracle:
        model: Any = getattr(transformers, cls).from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        return lambda inputs: model.eval()(**inputs).last_hidden_state[0]

    return load


def first(rows: Oracle) -> Oracle:
    """CLS pooling."""
    return _pooled(rows, lambda found: found[0])


def last(rows: Oracle) -> Oracle:
    """LAST pooling."""
    return _pooled(rows, lambda found: found[-1])


def mean(rows: Oracle) -> Oracle:
    """MEAN pooling."""
    return _pooled(rows, lambda found: found.mean(0))


def projected(rows: Oracle) -> Oracle:
    """A late-interaction projection of each row."""
    return _pooled(rows, lambda found: found @ projection().T)


def _pooled(rows: Oracle, pool: Callable[[Tensor], Tensor]) -> Oracle:
    def load(folder: Path) -> TextOracle:
        answer = rows(folder)
        return lambda inputs: pool(answer(inputs))

    return load


def both_ways(cls: str) -> Oracle:
    """Rows of a decoder that reads in both directions."""
    return lambda folder: both_sides_rows(folder, cls)


def published(publish: Publish, pool: Callable[[Tensor], Tensor] | None = None, *, native: bool = False) -> Maker:
    """A rotary encoder in its published or its native layout; logits of a text, or its pooled rows."""

    def make(folder: Path) -> TextOracle:
        checkpoint = publish()
        checkpoint.save_native(folder) if native else checkpoint.save(folder)
        model: Any = checkpoint.model

        def answer(inputs: dict[str, Tensor]) -> Tensor:
            # As if the text were the first that the model sees: transformers' dynamic frequencies remember the longest.
            base = model.base_model
            base.rotary_emb = type(base.rotary_emb)(model.config)
            logits: Tensor = model(**inputs).logits[0] if pool is None else pool(base(**inputs).last_hidden_state[0])
            return logits

        return answer

    return make


def make_nomic_moe(folder: Path) -> TextOracle:
    """Nomic's experts against numpy."""
    checkpoint = publish_nomic_moe()
    checkpoint.save(folder)
    return lambda inputs: torch.from_numpy(moe_rows(checkpoint, inputs["input_ids"][0].tolist())).mean(0)


def make_jina_colbert(publish: Publish) -> Maker:
    """Jina's late-interaction encoder: the rows after its projection."""

    def make(folder: Path) -> TextOracle:
        checkpoint = publish()
        checkpoint.save(folder)
        model: Any = checkpoint.model
        weight = checkpoint.tensors["linear.weight"]
        return lambda inputs: model.base_model(**inputs).last_hidden_state[0] @ weight.T

    return make


def make_embeddinggemma(folder: Path) -> TextOracle:
    """Gemma 3 that reads both ways, MEAN pooling, two Dense layers."""
    save_long(folder, "Gemma3TextModel", sliding_window=64)
    layers = dense(32, 48, IDENTITY), dense(48, 16, IDENTITY, seed=2)
    pooling = {"pooling_mode_mean_tokens": True}
    save_head(
        folder, HeadSpec(pooling=pooling, modules=(*layers, ("Normalize", {}, {})), max_seq_length=MAX_LENGTH), 32
    )
    rows = mean(rows_of("Gemma3TextModel"))(folder)

    def answer(inputs: dict[str, Tensor]) -> Tensor:
        vector = rows(inputs)
        for _, _, tensors in layers:
            vector = vector @ tensors["linear.weight"].T + tensors["linear.bias"]
        return vector

    return answer


def make_bidirectional_llama(num_labels: int | None = None) -> Maker:
    """NVIDIA's Llama, MEAN pooling; with labels its reranker."""

    def make(folder: Path) -> TextOracle:
        save_bidirectional_llama(folder, "avg", num_labels=num_labels)
        rows = both_sides_rows(folder, "LlamaModel", llama_config(folder))
        if num_labels is None:
            return lambda inputs: rows(inputs).mean(0)
        weight = score_weight(folder)
        return lambda inputs: rows(inputs).mean(0) @ weight.T

    return make


def make_internlm(folder: Path) -> TextOracle:
    """InternLM2's rewards against numpy."""
    save_internlm(folder)
    return lambda inputs: torch.from_numpy(reward_rows(folder, np.asarray(inputs["input_ids"][0])))


def make_jamba(folder: Path) -> TextOracle:
    """Jamba without a cache: the slow path, one text alone."""
    from tiny_jamba import save

    save(folder)
    model: Any = transformers.JambaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    return lambda inputs: model(**inputs, use_cache=False).logits[0]


def save_steps(name: str, cls: str) -> Callable[[Path], Path]:
    """Save a causal language model that is a process reward."""
    return save_classic(name, cls, tokenizer=step_tokenizer(), vocab_size=VOCAB_SIZE + 1)


def save_rewards(architecture: str, num_labels: int, **changes: Any) -> Callable[[Path], Path]:
    """Save a Qwen2 reward model."""
    sizes = {"num_layers": 2, "max_length": MAX_LENGTH, "max_position_embeddings": MAX_LENGTH}
    return lambda folder: save_reward_model(folder, architecture, num_labels, **sizes, **changes)


def bert_of_colbert(folder: Path) -> TextOracle:
    """Rows of the backbone that Stanford's layout holds."""
    tensors = {name.removeprefix("bert."): it for name, it in load_file(folder / "model.safetensors").items()}
    model = transformers.BertModel(transformers.BertConfig.from_pretrained(folder), add_pooling_layer=True).eval()
    model.load_state_dict({name: it for name, it in tensors.items() if name != "linear.weight"})
    return lambda inputs: model(**inputs).last_hidden_state[0]
