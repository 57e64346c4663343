"""Exports of tiny checkpoints: every way of storing weights, the gate, and what an artifact holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from native_graphs import FLOAT32
from safetensors.torch import load_file, save_file
from shared_traces import shared_traces
from tiny_heads import save_model
from tiny_models import SIZES, VOCAB_SIZE, HeadSpec, bert_tokenizer, save_head

from poolgraph import PoolingModel
from poolgraph.errors import ArtifactError
from poolgraph.export.compile import COPIED_FILES
from poolgraph.export.exporter import ExportResult, export_model
from poolgraph.export.probes import LONGEST_ANSWERED, PROBE_SENTENCES
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import MANIFEST_FILE, Manifest
from poolgraph.graphs.probe_files import load_probes

TEXTS = [*PROBE_SENTENCES, "", "a", " ".join(["brown fox"] * 20)]

HAS_NATIVE = "native_fp32" in FLOAT32

STAGES = [
    "read the checkpoint",
    "trace (uniform)",
    "trace (padded)",
    *(("trace (packed)",) if HAS_NATIVE else ()),
    "lower",
    "write the graphs",
    "answer the probes with the reference",
    "verify",
]

GRAPHS = {
    "onnx/model.onnx",
    "onnx/model_tokens.onnx",
    "onnx/model_cpu_fp32.onnx",
    "onnx/model_cpu_fp32_tokens.onnx",
    *(("onnx/model_native_fp32.onnx", "onnx/model_native_fp32_tokens.onnx") if HAS_NATIVE else ()),
}


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportResult, list[str]]:
    stages: list[str] = []
    return export_model(checkpoint, tmp_path_factory.mktemp("plain") / "artifact", on_stage=stages.append), stages


@pytest.fixture(scope="module")
def artifact(exported: tuple[ExportResult, list[str]]) -> Path:
    return exported[0].path


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    return open_artifact(artifact, check_hashes="all")


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def load(file: Path) -> onnx.ModelProto:
    return onnx.load(file, load_external_data=False)


# --- the artifact


def test_stages_are_announced_in_order_and_timed(exported: tuple[ExportResult, list[str]]) -> None:
    result, stages = exported
    assert stages == STAGES
    assert list(result.seconds) == STAGES
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert sum(result.seconds.values()) > 0


def test_files(artifact: Path, manifest: Manifest) -> None:
    found = set(contents(artifact))
    assert found == {MANIFEST_FILE, *manifest.files}
    assert found >= GRAPHS | {"README.md", "tokenizer.json", "probes.json", "probes.npz", "1_Pooling/config.json"}
    assert {name for name in found if name.startswith("onnx/")} == {*GRAPHS, "onnx/weights.data"}


def test_the_checkpoints_own_files_are_copied_as_they_are(artifact: Path, checkpoint: Path) -> None:
    copied = [
        name for name in (*COPIED_FILES, "tokenizer.json", "1_Pooling/config.json") if (checkpoint / name).is_file()
    ]
    assert len(copied) >= 7
    assert "chat_template.jinja" in copied
    for name in copied:
        assert (artifact / name).read_bytes() == (checkpoint / name).read_bytes()


def test_manifest_and_report(manifest: Manifest, exported: tuple[ExportResult, list[str]]) -> None:
    assert manifest.architecture == "BertModel"
    assert manifest.tasks == ("embed", "token_embed")
    assert manifest.source.model == "checkpoint"
    assert (manifest.pooler.pooling, manifest.pooler.normalize) == (("mean",), True)
    assert (manifest.pooler.embedding_size, manifest.pooler.token_embedding_size) == (32, 32)
    assert (manifest.limits.max_model_len, manifest.limits.vocab_size) == (128, VOCAB_SIZE)
    assert [(v.name, v.layout, v.verified) for v in manifest.variants] == [
        ("portable_fp32", "padded", True),
        *((("native_fp32", "packed", True),) if HAS_NATIVE else ()),
        ("cpu_fp32", "uniform", True),
    ]
    assert manifest.options == {}
    report = exported[0].report
    assert report == manifest.report
    assert all(row.passed for row in report.rows)
    checked = {(row.variant, row.family, row.check) for row in report.rows}
    for family in ("sequence", "token"):
        for check in ("alone", "padded right", "padded left"):
            assert ("portable_fp32", family, check) in checked
        for check in ("alone", "in batches", "same bits in batches"):
            for name in FLOAT32[:-1]:
                assert (name, family, check) in checked
    assert ("tokenizer", "ids", "equal ids") in checked
    assert {"torch", "transformers", "onnxruntime"} <= set(report.versions)


def test_every_pass_did_its_part(manifest: Manifest) -> None:
    layers = SIZES["num_hidden_layers"]
    lowerings = {
        "portable_fp32": "lower_attention_to_standard",
        "cpu_fp32": "lower_attention_to_cpu",
        "native_fp32": "lower_attention_to_native_float",
    }
    for variant, lowering in ((name, lowerings[name]) for name in FLOAT32):
        rewrites = {row.name: row.rewrites for row in manifest.variant(variant).passes if row.rewrites}
        assert rewrites["merge_projections"] == layers
        assert rewrites[lowering] == layers
        assert rewrites["store_transposed_weights"] == 6 * layers


def test_model_card(artifact: Path, manifest: Manifest) -> None:
    card = (artifact / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# checkpoint\n")
    for row in manifest.report.rows:
        assert f"| {row.variant} | {row.family} | {row.check} |" in card
    assert "{" not in card


def test_no_path_of_this_machine_is_in_any_file(artifact: Path, checkpoint: Path) -> None:
    import transformers

    repository = Path(__file__).parents[2]
    paths = [checkpoint.parent, repository, Path.home(), Path(transformers.__file__).parents[2], Path("/tmp")]
    for name, content in contents(artifact).items():
        for path in paths:
            assert str(path).encode() not in content, (name, path)


def test_portable_graph_is_standard(artifact: Path) -> None:
    for name in ("onnx/model.onnx", "onnx/model_tokens.onnx"):
        model = load(artifact / name)
        assert {node.domain for node in model.graph.node} == {""}
        assert [(entry.domain, entry.version <= 21) for entry in model.opset_import] == [("", True)]
        assert not model.functions
        onnx.checker.check_model(str(artifact / name), full_check=True)


def test_interfaces(artifact: Path, manifest: Manifest) -> None:
    expected = {
        "onnx/model.onnx": (["input_ids", "attention_mask", "token_type_ids"], ["pooled", "sentence_embedding"]),
        "onnx/model_tokens.onnx": (
            ["input_ids", "attention_mask", "token_type_ids"],
            ["raw_token_embeddings", "token_embeddings"],
        ),
        "onnx/model_cpu_fp32.onnx": (["input_ids", "token_type_ids"], ["pooled"]),
        "onnx/model_cpu_fp32_tokens.onnx": (["input_ids", "token_type_ids"], ["raw_token_embeddings"]),
    }
    described = {graph.file: graph for variant in manifest.variants for graph in variant.graphs.values()}
    for name, (inputs, outputs) in expected.items():
        graph = load(artifact / name).graph
        assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (inputs, outputs)
        axes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input]
        assert axes == [["batch_size", "sequence_length"]] * len(inputs)
        assert [t.name for t in described[name].inputs] == inputs
        assert [t.name for t in described[name].outputs] == outputs


def test_cpu_graph_attends_without_a_mask(artifact: Path) -> None:
    graph = load(artifact / "onnx/model_cpu_fp32.onnx").graph
    attention = [node for node in graph.node if node.domain == "com.microsoft"]
    assert [node.op_type for node in attention] == ["Attention"] * SIZES["num_hidden_layers"]
    assert all(len(node.input) == 3 for node in attention)
    assert not {"Softmax", "Where"} & {node.op_type for node in graph.node}
    assert not any("mask" in value.name for value in graph.input)


def test_weights_are_shared_by_all_graphs(artifact: Path, checkpoint: Path) -> None:
    places: dict[str, set[tuple[str, str]]] = {}
    for name in GRAPHS:
        for tensor in load(artifact / name).graph.initializer:
            entry = {item.key: item.value for item in tensor.external_data}
            if entry:
                places.setdefault(tensor.name, set()).add((entry["location"], entry["offset"]))
    assert all(len(found) == 1 for found in places.values())
    assert {location for found in places.values() for location, _ in found} == {"weights.data"}
    offsets = [offset for found in places.values() for _, offset in found]
    assert len(set(offsets)) == len(offsets)
    parameters = sum(tensor.numel() for tensor in read_weights(checkpoint).values())
    assert (artifact / "onnx/weights.data").stat().st_size < 4 * parameters + 4096 * len(offsets)


# --- other ways of storing the same weights


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def use_old_names(folder: Path) -> None:
    def rename(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    renamed = {rename(name): tensor for name, tensor in read_weights(folder).items()}
    assert any(name.endswith("gamma") for name in renamed)
    write_weights(folder, renamed)


def use_prefix(folder: Path) -> None:
    write_weights(folder, {f"bert.{name}": tensor for name, tensor in read_weights(folder).items()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))


def use_shards(folder: Path) -> None:
    tensors = read_weights(folder)
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def use_bin(folder: Path) -> None:
    torch.save(read_weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("store", [use_old_names, use_prefix, use_shards, use_bin])
def test_other_storage_of_the_same_weights(
    store: Callable[[Path], None], checkpoint: Path, artifact: Path, traces_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    store(tmp_path / "checkpoint")
    with shared_traces(traces_folder):
        export_model(tmp_path / "checkpoint", tmp_path / "artifact", targets=())
    with PoolingModel.load(artifact, variant="portable_fp32") as model:
        expected = model.embed(TEXTS)
    with PoolingModel.load(tmp_path / "artifact") as model:
        np.testing.assert_array_equal(model.embed(TEXTS), expected)


# --- repetition


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes(checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "again")
    (tmp_path / "again" / "leftover").write_text("of the old artifact")
    export_model(checkpoint, tmp_path / "again", overwrite=True)
    first, second = contents(artifact), contents(tmp_path / "again")
    manifests = [msgspec.json.decode(found.pop(MANIFEST_FILE), type=Manifest) for found in (first, second)]
    assert {name for name in first if first[name] != second.get(name)} == set()
    assert set(first) == set(second)
    assert manifests[0] == msgspec.structs.replace(manifests[1], created=manifests[0].created)


def test_output_that_is_there_is_refused_before_any_work(checkpoint: Path, artifact: Path) -> None:
    stages: list[str] = []
    before = contents(artifact)
    with pytest.raises(ArtifactError, match="already holds an artifact"):
        export_model(checkpoint, artifact, on_stage=stages.append)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        export_model(checkpoint, checkpoint, overwrite=True, on_stage=stages.append)
    assert stages == []
    assert contents(artifact) == before


# --- a class without a row


@pytest.mark.slow
def test_class_without_a_row(tmp_path: Path) -> None:
    from transformers import ElectraConfig, ElectraModel

    torch.manual_seed(3)
    config = ElectraConfig(
        vocab_size=VOCAB_SIZE,
        embedding_size=24,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        **SIZES,
    )
    folder = tmp_path / "checkpoint"
    ElectraModel(config).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    save_head(folder, HeadSpec(max_seq_length=None), config.hidden_size)
    export_model(folder, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert model.manifest.architecture == "ElectraModel"
        assert model.manifest.limits.max_model_len == 64
        assert all(variant.verified for variant in model.manifest.variants)
        found = model.embed(["a quick brown fox", "lazy dog"])
    assert not np.allclose(found[0], found[1], atol=1e-2)


@pytest.mark.slow
def test_texts_beyond_what_is_answered_are_cut_as_the_reference_cuts_them(tmp_path: Path) -> None:
    limit = LONGEST_ANSWERED + 500
    changes = {"max_position_embeddings": limit, "num_hidden_layers": 1}
    save_model(tmp_path / "checkpoint", "BertModel", "BertModel", max_length=limit, **changes)
    found = export_model(tmp_path / "checkpoint", tmp_path / "artifact", targets=()).report.rows
    with PoolingModel.load(tmp_path / "artifact") as model:
        texts = load_probes(tmp_path / "artifact").texts
        assert LONGEST_ANSWERED - 9 < max(model.count_tokens(texts)) <= LONGEST_ANSWERED
    (ids,) = [row for row in found if row.check == "equal ids"]
    assert (ids.passed, ids.num_texts) == (True, len(texts) + 1)
