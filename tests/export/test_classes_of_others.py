"""Classes that vLLM or others have and transformers has not: refused, for they may compute more than their backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_decoders import TINY_DECODERS, save_decoder
from tiny_heads import plan_of
from tiny_models import save_checkpoint

from poolgraph.errors import UnsupportedArchitecture


def renamed(folder: Path, plain: str, name: str) -> Path:
    """A checkpoint of a plain backbone whose config.json names another class."""
    save_decoder(folder, plain) if plain in TINY_DECODERS else save_checkpoint(folder, plain)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    return folder


@pytest.mark.parametrize(
    ("plain", "name"),
    [
        ("XLMRobertaModel", "BgeM3EmbeddingModel"),
        ("BertModel", "BertSpladeSparseEmbeddingModel"),
        ("BertModel", "BertClassificationModel"),
        ("Qwen3Model", "LlamaNemotronModel"),
        ("LlamaModel", "LlamaBidirectionalModel"),
    ],
)
def test_a_class_that_may_compute_more_than_its_backbone(plain: str, name: str, tmp_path: Path) -> None:
    """Heads of its own, or attention both ways: exported as the backbone it would verify, and answer otherwise."""
    message = rf"{name} is no class of transformers, .* beyond {plain} is not known .*\"architectures\": \[\"{plain}\""
    checkpoint = renamed(tmp_path / "checkpoint", plain, name)
    with pytest.raises(UnsupportedArchitecture, match=message):
        plan_of(checkpoint)
    assert plan_of(renamed(tmp_path / "plain", plain, plain)).backbone.architecture == plain
