"""Published layouts: configurations that are translated, tensors that are renamed, split and joined when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_nomic import NUM_EXPERTS, TRAINED_LENGTH, publish_nomic, publish_nomic_moe
from tiny_rotary import HEAD_DIM, HIDDEN_SIZE, INNER_SIZE, MAX_LENGTH, Published, publish_gte, publish_jina
from transformers import GteModel

from poolgraph.export.backbone import Backbone, find_backbone
from poolgraph.export.layout_table import LAYOUTS
from poolgraph.export.layouts import find_layout


def backbone_of(published: Published, folder: Path, **changes: Any) -> Backbone:
    """Save a checkpoint and find its backbone."""
    return find_backbone(published.save(folder), changes, trust_remote_code=False)


@pytest.mark.parametrize(
    ("publish", "name"),
    [
        (publish_gte, "GteModel"),
        (publish_nomic, "NomicBertModel"),
        (publish_jina, "JinaEmbeddingsV3Model"),
        (lambda: publish_jina(task="separation"), "JinaEmbeddingsV3Model"),
        (publish_nomic_moe, "NomicBertMoeModel"),
    ],
)
def test_published_layouts_become_a_class(publish: Any, name: str, tmp_path: Path) -> None:
    published = publish()
    backbone = backbone_of(published, tmp_path / "checkpoint")
    assert (backbone.architecture, backbone.form, backbone.model_class.__name__) == (name, "embedding", name)
    assert backbone.layout in LAYOUTS
    assert backbone.hidden_size == HIDDEN_SIZE
    if published.model is not None:
        expected = published.model.config.rope_parameters
        assert {key: backbone.config.rope_parameters[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "classifier", "name"),
    [
        ("GteNewModel", False, "GteModel"),
        ("GteNewForSequenceClassification", True, "GteForSequenceClassification"),
    ],
)
def test_names_of_vllm_are_taken(override: str, classifier: bool, name: str, tmp_path: Path) -> None:
    backbone = backbone_of(publish_gte(classifier=classifier), tmp_path / "checkpoint", architectures=[override])
    assert backbone.architecture == name


def test_transformers_own_configuration_has_no_layout() -> None:
    for published in (publish_gte(), publish_nomic(), publish_jina()):
        assert published.model is not None
        assert find_layout(LAYOUTS, published.model.config.to_dict()) is None


def test_fields_in_both_vocabularies_keep_transformers_own(tmp_path: Path) -> None:
    published = publish_nomic()
    rope = {"rope_type": "default", "rope_theta": 300.0}
    both = {**published.config, "hidden_size": HIDDEN_SIZE, "rope_parameters": rope, "max_position_embeddings": 48}
    folder = published.save(tmp_path / "checkpoint")
    (folder / "config.json").write_text(json.dumps(both))
    config: Any = find_backbone(folder, {}, trust_remote_code=False).config
    assert (config.intermediate_size, config.rope_parameters) == (INNER_SIZE, rope)
    assert config.max_position_embeddings == MAX_LENGTH


def test_a_caller_turns_the_growing_base_on(tmp_path: Path) -> None:
    config: Any = backbone_of(publish_nomic(), tmp_path / "checkpoint", rotary_scaling_factor=2).config
    assert config.rope_parameters == {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 2.0}
    assert (config.max_position_embeddings, config.n_positions) == (TRAINED_LENGTH, MAX_LENGTH)


def test_fixed_ntk_slows_the_slowest_turn_by_the_factor(tmp_path: Path) -> None:
    """The published code's frequencies: (base * s)^(-2i/d) / s^(2/d), so that the last one is 1/s of the unscaled."""
    factor, half = 4.0, HEAD_DIM // 2
    backbone = backbone_of(publish_gte(factor=factor), tmp_path / "checkpoint")
    found = GteModel(backbone.config).rotary_emb.inv_freq
    index = torch.arange(half) / half
    assert torch.allclose(found, (500.0 * factor) ** -index / factor ** (1 / half))
    assert torch.allclose(found[-1] * factor, 500.0 ** -index[-1])


def test_alibabas_settings_under_transformers_model_type(tmp_path: Path) -> None:
    published = publish_gte(factor=None)
    config = {**published.config, "model_type": "gte", "architectures": ["GteModel"]}
    folder = published.save(tmp_path / "checkpoint")
    (folder / "config.json").write_text(json.dumps(config))
    backbone = find_backbone(folder, {}, trust_remote_code=False)
    assert (backbone.architecture, backbone.config.rope_parameters["rope_theta"]) == ("GteModel", 500.0)


@pytest.mark.parametrize("publish", [publish_gte, publish_nomic, publish_jina])
def test_tensors_are_those_of_the_class_under_its_names_and_the_published_ones(publish: Any, tmp_path: Path) -> None:
    published = publish()
    own = {name: tensor.clone() for name, tensor in published.model.state_dict().items()}
    save_dir = published.save_native(tmp_path / "native")
    save_file(own, save_dir / "model.safetensors", metadata={"format": "pt"})
    native = find_backbone(save_dir, {}, trust_remote_code=False).open_weights()
    renamed = backbone_of(published, tmp_path / "checkpoint").open_weights()
    prefix = "roberta." if publish is publish_jina else ""
    for name, expected in own.items():
        assert torch.equal(native.load(name), expected)
        assert torch.equal(renamed.load(prefix + name), expected)
        assert native.shape(name) == renamed.shape(prefix + name) == tuple(expected.shape)
    assert renamed.names == {prefix + name for name in own}


def test_experts_lie_side_by_side(tmp_path: Path) -> None:
    published = publish_nomic_moe()
    weights = backbone_of(published, tmp_path / "checkpoint").open_weights()
    down = published.tensors["encoder.layers.1.mlp.experts.mlp.w2"]
    assert weights.shape("layers.1.mlp.down_proj.weight") == (HIDDEN_SIZE, NUM_EXPERTS * INNER_SIZE)
    assert torch.equal(weights.load("layers.1.mlp.down_proj.weight"), down.T)
    assert weights.stored_name("layers.1.mlp.router.weight") == "encoder.layers.1.mlp.router.layer.weight"
