"""Tensors that a checkpoint's files promise and its weights lack, and tensors of its layers that nothing reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_embedders import save_jina_v5, save_lfm2, save_voyage
from tiny_heads import change_json, plan_of
from tiny_jina_bert import save_jina_bert
from tiny_llamas import save_long
from tiny_rotary import publish_jina

from poolgraph.errors import ExportError, UnsupportedArchitecture
from poolgraph.export.build import build_module
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head import StoredTensor
from poolgraph.export.unread import find_unread

ADAPTER_FILE = Path("adapters/retrieval/adapter_model.safetensors")


def leave_out(folder: Path, *endings: str) -> None:
    """Write a checkpoint's weights again without some tensors."""
    file = folder / "model.safetensors"
    kept = {name: it for name, it in load_file(file).items() if not name.endswith(endings)}
    save_file(kept, file, metadata={"format": "pt"})


def add(folder: Path, *names: str) -> None:
    """Write a checkpoint's weights again with some tensors more."""
    file = folder / "model.safetensors"
    save_file({**load_file(file), **{name: torch.ones(2) for name in names}}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["VoyageQwen3BidirectionalEmbedModel", "Qwen3BidirectionalModel"])
def test_a_class_that_ends_with_a_matrix_needs_it(name: str, tmp_path: Path) -> None:
    save_voyage(tmp_path / "voyage")
    change_json(tmp_path / "voyage" / "config.json", architectures=[name])
    leave_out(tmp_path / "voyage", "linear.weight")
    with pytest.raises(
        ExportError, match=r"lacks the tensor linear\.weight, .* --hf-overrides '\{\"architectures\""
    ) as it:
        plan_of(tmp_path / "voyage")
    assert """'{"architectures": ["Qwen3Model"], "is_causal": false}'""" in str(it.value)
    plan = plan_of(tmp_path / "voyage", hf_overrides={"architectures": ["Qwen3Model"], "is_causal": False})
    assert ([step.kind for step in plan.head.shared], plan.config.is_causal) == (["Normalize"], False)


def test_adapters_that_the_configuration_names_are_needed(tmp_path: Path) -> None:
    folder = publish_jina(task="text-matching").save(tmp_path / "jina")
    leave_out(folder, "0.lora_B")
    with pytest.raises(
        ExportError, match=r"lacks \d+ tensors of its adapters: .*\.parametrizations\.weight\.0\.lora_B"
    ):
        plan_of(folder).backbone.open_weights()


def test_merged_adapters_are_named_no_more(tmp_path: Path) -> None:
    folder = publish_jina(task="text-matching").save(tmp_path / "jina")
    file = folder / "model.safetensors"
    tensors = {name.replace(".parametrizations.weight.original", ".weight"): it for name, it in load_file(file).items()}
    save_file({name: it for name, it in tensors.items() if "lora" not in name}, file, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"names adapters .* --hf-overrides '\{\"lora_adaptations\": null\}'"):
        plan_of(folder).backbone.open_weights()
    build_module(plan_of(folder, hf_overrides={"lora_adaptations": None}))


def test_an_adapter_without_matrices(tmp_path: Path) -> None:
    save_jina_v5(tmp_path / "jina", "Qwen3Model", "retrieval")
    save_file({}, tmp_path / "jina" / ADAPTER_FILE)
    with pytest.raises(ExportError, match=r"the adapter 'retrieval' has no matrices in adapter_model\.safetensors"):
        plan_of(tmp_path / "jina").backbone.open_weights()


def test_a_layer_of_other_code_is_refused(tmp_path: Path) -> None:
    save_jina_bert(tmp_path / "jina")
    add(tmp_path / "jina", "encoder.layer.1.attention.self.gate.weight")
    with pytest.raises(
        UnsupportedArchitecture, match=r"1 tensors .*: encoder\.layer\.1\.attention\.self\.gate\.weight;"
    ):
        build_module(plan_of(tmp_path / "jina"))


def test_what_is_left_unread_rightly(tmp_path: Path) -> None:
    save_lfm2(tmp_path / "lfm2")
    add(
        tmp_path / "lfm2",
        "pooler.dense.weight",
        "lm_head.weight",
        "layers.99.mlp.weight",
        "layers.0.rotary_emb.inv_freq",
    )
    build_module(plan_of(tmp_path / "lfm2"))


def test_layers_are_told_by_their_numbers() -> None:
    names = ["a.0.w", "a.0.x", "a.10.w", "b.0.w", "0.w", "0.x", "head.w"]
    assert find_unread({"a.0.w", "0.w", "head.v"}, names) == ["0.x", "a.0.x"]


def test_weights_that_are_quantized_are_refused(tmp_path: Path) -> None:
    save_long(tmp_path / "qwen", "Qwen3Model")
    change_json(tmp_path / "qwen" / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedArchitecture, match=r"quantization_config \(quant_method 'fp8'\): export the check"):
        plan_of(tmp_path / "qwen")
    plan = plan_of(tmp_path / "qwen", hf_overrides={"quantization_config": None})
    assert plan.config.quantization_config is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_numbers_that_need_a_scale_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """As of a checkpoint in fp8 whose configuration says nothing of it."""
    save_file({"a": torch.ones(2, 2).to(dtype), "b": torch.ones(2).bfloat16()}, tmp_path / "model.safetensors")
    weights = WeightFolder(tmp_path)
    with pytest.raises(ExportError, match=r"a is stored as torch\.(float8|int8).*whose scale nothing here reads"):
        StoredTensor(folder=tmp_path, name="a").load(weights)
    assert StoredTensor(folder=tmp_path, name="b").load(weights).dtype is torch.float32
