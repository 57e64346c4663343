"""Layouts of embedders with adapters, a projection or a centred convolution: what they become, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_colbert import build_lfm2, save_pylate
from tiny_embedders import ALPHA, HIDDEN_SIZE, PROJECTED, RANK, save_jina_v5, save_lfm2, save_voyage
from tiny_heads import change_json, plan_of
from tiny_jina_bert import save_jina_bert

from poolgraph.errors import ExportError, InputError, PoolgraphError, UnsupportedArchitecture
from poolgraph.export.arch_jina_bert import alibi_slopes
from poolgraph.export.backbone import find_backbone
from poolgraph.export.build import build_module

ADAPTER = Path("adapters/retrieval/adapter_config.json")


@pytest.fixture
def jina(tmp_path: Path) -> Path:
    save_jina_v5(tmp_path / "jina", "Qwen3Model", "retrieval")
    return tmp_path / "jina"


@pytest.mark.parametrize("projected", [True, False])
def test_voyage_is_a_qwen_that_reads_both_ways(projected: bool, tmp_path: Path) -> None:
    save_voyage(tmp_path / "voyage", projected=projected)
    plan = plan_of(tmp_path / "voyage")
    assert (plan.backbone.architecture, plan.config.is_causal, plan.head.pooling) == ("Qwen3Model", False, ("mean",))
    assert [step.kind for step in plan.head.shared] == (["Dense"] if projected else []) + ["Normalize"]
    assert plan.sequence_size == plan.token_size == (PROJECTED if projected else HIDDEN_SIZE)


def test_a_flag_of_the_configuration_says_so_too(tmp_path: Path) -> None:
    save_voyage(tmp_path / "voyage")
    change_json(tmp_path / "voyage" / "config.json", architectures=["Qwen3Model"])
    assert plan_of(tmp_path / "voyage").config.is_causal is False
    change_json(tmp_path / "voyage" / "config.json", use_bidirectional_attention=False)
    assert getattr(plan_of(tmp_path / "voyage").config, "is_causal", None) is None


@pytest.mark.parametrize("name", ["Qwen3Model", "EuroBertModel"])
def test_jinas_backbone_is_told_by_is_decoder(name: str, tmp_path: Path) -> None:
    save_jina_v5(tmp_path / "jina", name, "retrieval")
    assert find_backbone(tmp_path / "jina", {}, trust_remote_code=False).architecture == name


def test_an_adapter_is_merged_where_it_has_matrices(jina: Path) -> None:
    stored, adapter = (
        load_file(jina / "model.safetensors"),
        load_file(jina / ADAPTER.with_name("adapter_model.safetensors")),
    )
    weights = find_backbone(jina, {}, trust_remote_code=False).open_weights()
    name = "layers.1.mlp.down_proj"
    down, up = (adapter[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    expected = stored[f"{name}.weight"] + ALPHA / RANK * up @ down
    torch.testing.assert_close(weights.load(f"{name}.weight"), expected)
    assert torch.equal(weights.load("layers.1.mlp.gate_proj.weight"), stored["layers.1.mlp.gate_proj.weight"])
    change_json(jina / ADAPTER, use_rslora=True)
    expected = stored[f"{name}.weight"] + ALPHA / RANK**0.5 * up @ down
    torch.testing.assert_close(
        find_backbone(jina, {}, trust_remote_code=False).open_weights().load(f"{name}.weight"), expected
    )


def test_an_unknown_task_is_refused_with_those_there_are(jina: Path) -> None:
    with pytest.raises(InputError, match=r"jina_task 'translation' is unknown: .*\['retrieval', 'text-matching'\]"):
        plan_of(jina, hf_overrides={"jina_task": "translation"}).backbone.open_weights()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"use_dora": True}, UnsupportedArchitecture, "'retrieval' has use_dora, which are not merged here"),
        ({"bias": "all", "modules_to_save": ["norm"]}, UnsupportedArchitecture, "has modules_to_save, bias"),
        ({"r": "four"}, ExportError, "adapter_config.json is no configuration of an adapter"),
    ],
)
def test_adapters_that_are_not_merged(
    jina: Path, changes: dict[str, object], error: type[PoolgraphError], message: str
) -> None:
    change_json(jina / ADAPTER, **changes)
    with pytest.raises(error, match=message):
        find_backbone(jina, {}, trust_remote_code=False).open_weights()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.layers.9.mlp.up_proj.lora_A.weight", "tensors beside pairs of A and B"),
        ("base_model.model.layers.0.mlp.up_proj.magnitude", "tensors beside pairs of A and B"),
    ],
)
def test_tensors_that_are_no_pair(jina: Path, name: str, message: str) -> None:
    file = jina / ADAPTER.with_name("adapter_model.safetensors")
    save_file({**load_file(file), name: torch.ones(1)}, file)
    with pytest.raises(ExportError, match=message):
        find_backbone(jina, {}, trust_remote_code=False).open_weights()


def test_an_adapter_of_other_weights(jina: Path) -> None:
    file = jina / ADAPTER.with_name("adapter_model.safetensors")
    save_file({name.replace("layers.1", "layers.9"): it for name, it in load_file(file).items()}, file)
    with pytest.raises(ExportError, match=r"weights that the checkpoint lacks: layers\.9\."):
        find_backbone(jina, {}, trust_remote_code=False).open_weights()


def test_lfm2_without_a_base_has_its_own(tmp_path: Path) -> None:
    save_lfm2(tmp_path / "lfm2")
    config = json.loads((tmp_path / "lfm2" / "config.json").read_text())
    (tmp_path / "lfm2" / "config.json").write_text(json.dumps({**config, "rope_parameters": None}))
    backbone = find_backbone(tmp_path / "lfm2", {}, trust_remote_code=False)
    assert backbone.config.rope_parameters["rope_theta"] == 1e6
    assert (backbone.architecture, backbone.config.is_causal) == ("Lfm2BidirectionalModel", False)


def test_queries_filled_up_for_centred_convolutions_are_refused(tmp_path: Path) -> None:
    folder = save_pylate(tmp_path / "colbert", {"model_type": "ColBERT", "query_length": 16}, build=build_lfm2)
    change_json(folder / "config.json", architectures=["Lfm2BidirectionalModel"])
    with pytest.raises(UnsupportedArchitecture, match="Lfm2BidirectionalModel convolves tokens in both directions"):
        plan_of(folder)
    settings = {"query_length": 16, "do_query_expansion": False}
    change_json(folder / "config_sentence_transformers.json", **settings)
    assert plan_of(folder).backbone.architecture == "Lfm2BidirectionalModel"


def test_jinas_first_bert_is_told_by_its_positions(tmp_path: Path) -> None:
    save_jina_bert(tmp_path / "embedder")
    assert plan_of(tmp_path / "embedder").backbone.architecture == "JinaBertModel"
    save_jina_bert(tmp_path / "reranker", num_labels=1)
    plan = plan_of(tmp_path / "reranker")
    assert (plan.backbone.architecture, plan.model_class.__name__) == (
        "JinaBertForSequenceClassification",
        "JinaBertModel",
    )
    assert (plan.head.pooling, plan.sequence_size, plan.scoring is not None) == (("cls",), 1, True)


@pytest.mark.parametrize("told", [True, False])
def test_jinas_bert_of_code_is_told_by_the_name_of_its_code(told: bool, tmp_path: Path) -> None:
    save_jina_bert(tmp_path / "code", post_norm=True)
    if not told:
        change_json(tmp_path / "code" / "config.json", auto_map={})
        with pytest.raises(UnsupportedArchitecture, match=r"does not read .*attention\.self\.layer_norm_k\.bias"):
            build_module(plan_of(tmp_path / "code"))
    plan = plan_of(tmp_path / "code", hf_overrides={} if told else {"qk_post_norm": True})
    layer = build_module(plan).backbone.encoder.layer[0]
    assert [name for name, it in layer.named_modules() if isinstance(it, torch.nn.LayerNorm)] == [
        *("attention.self.layer_norm_q", "attention.self.layer_norm_k", "attention.output.LayerNorm"),
        *("layer_norm_1", "layer_norm_2"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-devlin-norm-1e-2--modeling_bert.JinaBertModel"}},
            "qk-devlin-norm.* not known here; those known are of jina-bert-v2-qk-post-norm",
        ),
        ({"feed_forward_type": "original"}, "feed_forward_type 'original'; it is one of geglu, reglu"),
        ({"alibi_scaling": 4}, r"\{'alibi_scaling': 4\}"),
    ],
)
def test_other_berts_of_jina(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    save_jina_bert(tmp_path / "embedder")
    with pytest.raises(UnsupportedArchitecture, match=message):
        plan_of(tmp_path / "embedder", hf_overrides=changes)


def test_slopes_are_those_of_the_paper() -> None:
    """Eight heads: 1/2 to 1/256 (arXiv:2108.12409, section 3); twelve: the first four odd ones of sixteen besides."""
    eight = [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(8) == eight
    assert alibi_slopes(12) == pytest.approx([*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
