"""One tiny artifact a task, under the names that docs/tasks.md uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_decoders import save_decoder
from tiny_heads import save_model
from tiny_models import HeadSpec, save_checkpoint
from tiny_sparse import save_splade

from poolgraph import export_model

PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}}
STEP_POOLER = {"pooling_type": "STEP", "step_tag_id": 0, "returned_token_ids": [7, 9]}
NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def _change_config(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def _embedder(folder: Path) -> Path:
    return _change_config(save_checkpoint(folder, "BertModel", HeadSpec(settings=PROMPTS)), is_matryoshka=True)


def _classifier(folder: Path) -> Path:
    return save_model(folder, "BertModel", "BertForSequenceClassification", id2label={0: "NEGATIVE", 1: "POSITIVE"})


def _colbert(folder: Path) -> Path:
    """Stanford's layout: the backbone's tensors with a prefix, the projection beside them, artifact.metadata."""
    save_checkpoint(folder, "BertModel", None)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["linear.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 48, "doc_maxlen": 120}
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return _change_config(folder, architectures=["HF_ColBERT"])


ARTIFACTS: Mapping[str, tuple[Callable[[Path], Path], Mapping[str, Any]]] = {
    "embedder": (_embedder, {}),
    "classifier": (_classifier, {}),
    "reranker": (
        lambda folder: save_model(folder, "RobertaModel", "RobertaForSequenceClassification", num_labels=1),
        {},
    ),
    "reward": (lambda folder: save_decoder(folder, "GPT2Model", "GPT2ForSequenceClassification", num_labels=1), {}),
    "process-reward": (
        lambda folder: save_decoder(folder, "LlamaModel", "LlamaForCausalLM"),
        {"pooler_config": STEP_POOLER},
    ),
    "ner": (lambda folder: save_model(folder, "BertModel", "BertForTokenClassification", id2label=NAMES), {}),
    "colbert": (_colbert, {}),
    "splade": (lambda folder: save_splade(folder, "BertModel"), {}),
}
"""How each checkpoint is saved, and the options of its export."""


def make_artifact(name: str, folder: Path) -> Path:
    """Save the checkpoint called ``name`` and export it into ``folder``."""
    save, options = ARTIFACTS[name]
    export_model(save(folder / f"{name}-checkpoint"), folder / name, **options)
    return folder / name
