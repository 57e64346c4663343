"""Classes that vLLM or others have and transformers has not: refused, for they may compute more than their backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_decoders import TINY_DECODERS, save_decoder
from tiny_heads import plan_of
from tiny_models import save_checkpoint

from poolgraph.errors import UnsupportedArchitecture
from poolgraph.export.architectures import ARCHITECTURES, REFUSED_CLASSES


def renamed(folder: Path, plain: str, name: str) -> Path:
    """A checkpoint of a plain backbone whose config.json names another class."""
    save_decoder(folder, plain) if plain in TINY_DECODERS else save_checkpoint(folder, plain)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    return folder


@pytest.mark.parametrize(
    ("plain", "name"),
    [
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


def test_a_class_that_is_known_not_to_be_right_is_refused_with_the_reason(tmp_path: Path) -> None:
    listwise = renamed(tmp_path / "checkpoint", "Qwen3Model", "JinaForRanking")
    with pytest.raises(UnsupportedArchitecture, match="JinaForRanking is not supported: it ranks a list of documents"):
        plan_of(listwise)


@pytest.mark.parametrize("name", sorted(REFUSED_CLASSES))
def test_refused_classes_have_no_row_and_say_what_they_do(name: str) -> None:
    assert name not in ARCHITECTURES
    assert REFUSED_CLASSES[name].split()[0].endswith("s")
