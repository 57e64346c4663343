"""Exports for CUDA on a machine without it: variants and files, what is verified and what is not, the range of fp16."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
import torch
from cuda_graphs import EMPTY_TEXTS, packed_feeds, padded_feeds, random_texts
from cuda_operators import run_reference
from native_graphs import FLOAT32
from overflowing_weights import overflowing
from tiny_decoders import save_decoder
from tiny_models import SIZES, HeadSpec, save_checkpoint

from poolgraph import PoolingModel
from poolgraph.cli import main
from poolgraph.errors import ArtifactError, ExportError, Float16RangeError, ProviderError
from poolgraph.export import half
from poolgraph.export.exporter import export_model
from poolgraph.export.half import check_twin_range
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import CUDA_OPERATORS, FloatRange, Manifest
from poolgraph.runtime.inspect import describe
from poolgraph.runtime.providers import CUDA_PROVIDER, Machine, Wish, check_verified, choose_variant
from poolgraph.runtime.session import provider_loads

pytestmark = [
    pytest.mark.skipif(provider_loads(CUDA_PROVIDER), reason="these exports are of a machine without"),
    pytest.mark.usefixtures("one_trace_each"),
]

NUM_LAYERS = SIZES["num_hidden_layers"]

CALIBRATION = ["one text", "another text about a quick brown fox", "a third one"]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "texts.txt"
    file.write_text("\n".join(CALIBRATION))
    return file


@pytest.fixture(scope="module")
def encoder(checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = tmp_path_factory.mktemp("encoder") / "artifact"
    options = {"targets": ("cpu", "cuda"), "precisions": ("fp32", "fp16"), "calibration": calibration}
    return export_model(checkpoint, artifact, **options).path


@pytest.fixture(scope="module")
def decoder(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_decoder(tmp_path_factory.mktemp("decoder") / "checkpoint", "Qwen3Model")
    options = {"targets": ("cuda",), "precisions": ("fp16", "bf16"), "calibration": calibration}
    return export_model(folder, folder.parent / "artifact", **options).path


def flags(manifest: Manifest) -> dict[str, bool]:
    return {variant.name: variant.verified for variant in manifest.variants}


def test_an_encoder_has_graphs_of_both_layouts_that_are_not_verified(encoder: Path) -> None:
    manifest = open_artifact(encoder, check_hashes="all")
    assert flags(manifest) == {**dict.fromkeys(FLOAT32, True), "cuda_packed_fp16": False, "cuda_fp16": False}
    for name, layout in (("cuda_packed_fp16", "packed"), ("cuda_fp16", "padded")):
        variant = manifest.variant(name)
        assert (variant.layout, variant.precision, variant.providers) == (layout, "fp16", (CUDA_PROVIDER,))
        assert variant.graphs.keys() == {"sequence", "token"}
        assert all((encoder / graph.file).is_file() for graph in variant.graphs.values())
        assert variant.float_range is not None
        assert 0 < variant.float_range.largest < 100
        assert (variant.float_range.float32, variant.float_range.calibration) == ((), "3 texts of texts.txt")
    assert {row.variant for row in manifest.report.rows} == {"tokenizer", *FLOAT32}


def test_inputs_of_the_kernels_are_in_the_manifest(encoder: Path, decoder: Path) -> None:
    packed = open_artifact(encoder).variant("cuda_packed_fp16").graphs["sequence"]
    inputs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in packed.inputs}
    assert inputs["token_offset"] == ("int32", ("batch_size", "sequence_length"))
    assert inputs["cu_seqlens"] == ("int64", ("batch_size + 1",))
    padded = open_artifact(decoder).variant("cuda_fp16").graphs["sequence"]
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in padded.inputs}["total_sequence_length"] == (
        "int32",
        (),
    )
    assert {tensor.dtype for tensor in (*packed.outputs, *padded.outputs)} == {"float32"}


def test_a_decoder_has_padded_graphs_in_both_types(decoder: Path) -> None:
    manifest = open_artifact(decoder)
    assert flags(manifest) == {"portable_fp32": True, "cuda_fp16": False, "cuda_bf16": False}
    assert manifest.variant("cuda_bf16").float_range is None
    half = onnx.load(decoder / manifest.variant("cuda_bf16").graphs["sequence"].file, load_external_data=False)
    types = {tensor.data_type for tensor in half.graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in types
    assert onnx.TensorProto.FLOAT16 not in types
    assert "GroupQueryAttention" in {node.op_type for node in half.graph.node}


def test_cublaslt_is_made_where_it_is_asked_for_and_has_a_place(
    checkpoint: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"precisions": ("fp16", "bf16"), "calibration": calibration}
    artifact = export_model(checkpoint, tmp_path / "encoder", targets=("cuda", "cublaslt"), **options).path
    manifest = open_artifact(artifact)
    own = [variant for variant in manifest.variants if variant.operators is not None]
    assert [variant.name for variant in own] == ["cublaslt_packed_fp16", "cublaslt_fp16", "cublaslt_bf16"]
    assert {(variant.operators, variant.providers, variant.verified) for variant in own} == {
        (CUDA_OPERATORS, (CUDA_PROVIDER,), False)
    }
    for variant in own:
        beside = manifest.variant(variant.name.replace("cublaslt", "cuda"))
        for family, graph in variant.graphs.items():
            nodes = [node.op_type for node in onnx.load(artifact / graph.file, load_external_data=False).graph.node]
            plain = onnx.load(artifact / beside.graphs[family].file, load_external_data=False).graph.node
            assert nodes.count("BiasMatMul") == 2 * NUM_LAYERS, (
                variant.name
            )  # the query, and the first of the feed-forward
            assert "BiasGelu" not in nodes
            assert len(nodes) == len(plain) - 2 * NUM_LAYERS
    needed = f"on a machine that has\n{CUDA_PROVIDER} and {CUDA_OPERATORS} compares them"
    assert needed in (artifact / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"on a machine that has {CUDA_PROVIDER} and {CUDA_OPERATORS}, or pass"):
        check_verified(own[0], artifact)
    assert main(["verify", str(artifact)]) == 0
    assert f"cublaslt_bf16 ({CUDA_PROVIDER}, {CUDA_OPERATORS})" in capsys.readouterr().err
    machine = Machine(providers=(CUDA_PROVIDER, "CPUExecutionProvider"), operators=(CUDA_OPERATORS,))
    assert choose_variant(manifest, Wish(), machine).variant.name == "cuda_packed_fp16"
    asked = Wish(variant="cublaslt_fp16")
    assert choose_variant(manifest, asked, machine).variant.name == "cublaslt_fp16"
    with pytest.raises(ProviderError, match=r"cublaslt_fp16 \(fp16, CUDA.*, needs poolgraph.cuda/1\) does not run"):
        choose_variant(manifest, asked, Machine(providers=machine.providers))


def test_a_model_without_biases_has_no_place_for_cublaslt(calibration: Path, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "checkpoint", "LlamaModel")
    options = {"precisions": ("bf16",), "calibration": None}
    with pytest.warns(UserWarning, match="^cublaslt_bf16 left out: none of the model's products has a bias"):
        artifact = export_model(folder, tmp_path / "both", targets=("cuda", "cublaslt"), **options).path
    assert list(flags(open_artifact(artifact))) == ["portable_fp32", "cuda_bf16"]
    with pytest.raises(ExportError, match="none of the model's products has a bias for cuBLASLt to take in"):
        export_model(folder, tmp_path / "alone", targets=("cublaslt",), **options)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_without_cuda_the_float32_runs_and_the_others_do_not_load(name: str, request: pytest.FixtureRequest) -> None:
    artifact = request.getfixturevalue(name)
    with PoolingModel.load(artifact) as model:
        assert model.variant.precision == "fp32"
    with pytest.raises(ProviderError, match="CUDAExecutionProvider"):
        PoolingModel.load(artifact, variant="cuda_fp16")


def test_with_cuda_the_packed_graph_is_chosen_and_refused_until_it_is_verified(encoder: Path) -> None:
    manifest = open_artifact(encoder)
    machine = Machine(providers=(CUDA_PROVIDER, "CPUExecutionProvider"))
    choice = choose_variant(manifest, Wish(), machine)
    assert (choice.variant.name, choice.provider) == ("cuda_packed_fp16", CUDA_PROVIDER)
    with pytest.raises(ArtifactError, match=r"'cuda_packed_fp16' was never verified: run `poolgraph verify .*CUDAExec"):
        check_verified(choice.variant, encoder)


def test_verifying_again_marks_only_what_ran_and_names_the_others(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(encoder, tmp_path / "copy")
    assert main(["verify", str(tmp_path / "copy")]) == 0
    assert flags(open_artifact(tmp_path / "copy")) == flags(open_artifact(encoder))
    others = ", ".join(f"{name} ({CUDA_PROVIDER})" for name in ("cuda_packed_fp16", "cuda_fp16"))
    assert f"poolgraph: not verified, since it does not run here: {others}" in capsys.readouterr().err


def test_card_and_inspect_say_what_is_not_verified(encoder: Path) -> None:
    card = (encoder / "README.md").read_text(encoding="utf-8")
    assert "Not verified: cuda_packed_fp16, cuda_fp16, which" in card
    assert "* cuda_fp16: largest activation " in card
    assert "model_cuda_fp16.onnx" in card
    shown = describe(open_artifact(encoder), encoder)
    assert shown.count("NOT verified") == 2
    assert shown.count("of 65,504, by 3 texts of texts.txt; nothing stays in float32 for it") == 2


def test_values_beyond_the_range_are_named_and_computed_in_float32(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    """The last feed-forward layer of one layer answers in hundreds of thousands, and the norm behind it takes them."""
    wide = overflowing(checkpoint, tmp_path / "wide", "layer.1.output.dense.weight", 1e6)
    options = {"targets": ("cuda",), "precisions": ("fp16",), "calibration": calibration}
    artifact = export_model(wide, tmp_path / "artifact", **options).path
    manifest = open_artifact(artifact)
    texts = random_texts((9, 1, 12))
    with PoolingModel.load(artifact) as model:
        assert model.variant.name == "portable_fp32"
    for name in ("cuda_fp16", "cuda_packed_fp16"):
        variant = manifest.variant(name)
        assert variant.float_range is not None
        assert variant.float_range.largest > 65504
        assert len(variant.float_range.float32) == 2  # the product, and its sum with the bias
    graph = manifest.variant("cuda_fp16").graphs["sequence"]
    feeds = padded_feeds(texts)
    answer = run_reference(artifact / graph.file, {tensor.name: feeds[tensor.name] for tensor in graph.inputs})
    expected = run_reference(
        artifact / "onnx/model.onnx",
        {tensor.name: feeds[tensor.name] for tensor in manifest.variants[0].graphs["sequence"].inputs},
    )
    found, wanted = (torch.from_numpy(it["pooled"][: len(texts)].copy()) for it in (answer, expected))
    assert torch.cosine_similarity(found, wanted).min() > 0.9995


@pytest.mark.parametrize(("large", "small"), [("query", "key"), ("key", "query")])
def test_what_attention_reads_beyond_the_range_is_float32_in_both_layouts(
    checkpoint: Path, calibration: Path, tmp_path: Path, large: str, small: str
) -> None:
    """The packed kernel reads what was probed under another name: without the axis of the batch."""
    parts = {it: tuple(f"layer.0.attention.self.{it}.{part}" for part in ("weight", "bias")) for it in (large, small)}
    half = overflowing(checkpoint, tmp_path / "half", parts[large], 4e4)
    wide = overflowing(half, tmp_path / "wide", parts[small], 1e-4)  # so that scores stay mild
    options = {"targets": ("cuda", "cublaslt"), "precisions": ("fp16",), "calibration": calibration}
    artifact = export_model(wide, tmp_path / "artifact", **options).path
    manifest, texts = open_artifact(artifact), random_texts((9, 1, 12))
    inputs = {tensor.name for tensor in manifest.variants[0].graphs["sequence"].inputs}
    feeds = {name: array for name, array in padded_feeds(texts).items() if name in inputs}
    expected = torch.from_numpy(run_reference(artifact / "onnx/model.onnx", feeds)["pooled"])
    for name in ("cuda_fp16", "cuda_packed_fp16", "cublaslt_fp16", "cublaslt_packed_fp16"):
        variant = manifest.variant(name)
        graph, is_packed = variant.graphs["sequence"], variant.layout == "packed"
        feeds = packed_feeds(texts) if is_packed else padded_feeds(texts)
        answer = run_reference(artifact / graph.file, {tensor.name: feeds[tensor.name] for tensor in graph.inputs})
        rows = torch.from_numpy(answer["pooled"])[EMPTY_TEXTS if is_packed else 0 :]
        assert torch.cosine_similarity(rows[: len(texts)], expected[: len(texts)]).min() > 0.9995, name


def test_a_value_beyond_the_range_that_a_kernel_reads_is_refused(calibration: Path, tmp_path: Path) -> None:
    """The attention kernel of decoders has no float32."""
    folder = save_decoder(tmp_path / "checkpoint", "Qwen3Model")
    wide = overflowing(folder, tmp_path / "wide", "layers.1.self_attn.v_proj.weight", 1e6)
    message = r"GroupQueryAttention .*In float32, beyond the range of fp16, are .*; export with --precision bf16"
    with pytest.raises(Float16RangeError, match=message):
        export_model(wide, tmp_path / "artifact", targets=("cuda",), precisions=("fp16",), calibration=calibration)


def test_a_model_beyond_the_range_is_refused_and_told_of_bf16(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    wide = overflowing(checkpoint, tmp_path / "wide", "dense.weight", 1e6)
    with pytest.raises(
        Float16RangeError, match=r"\d+ of \d+ values go beyond .* 65,504: .* and more; export with --precision bf16"
    ):
        export_model(wide, tmp_path / "artifact", targets=("cuda",), precisions=("fp16",), calibration=calibration)
    assert not (tmp_path / "artifact").exists()
    artifact = export_model(wide, tmp_path / "artifact", targets=("cuda",), precisions=("bf16",)).path
    assert flags(open_artifact(artifact)) == {"portable_fp32": True, "cuda_bf16": False}


@pytest.mark.parametrize(
    ("most_kept", "message"),
    [(0.1, r"2 of \d+ values go"), (1.0, r"in the first \d+ layers 2 values go")],
)
def test_a_checkpoint_too_large_to_run_is_probed_by_its_first_layers(
    checkpoint: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_kept: float, message: str
) -> None:
    monkeypatch.setattr(half, "MOST_KEPT", most_kept)
    options = {"targets": ("cuda",), "precisions": ("fp16",), "calibration": calibration, "max_memory": 1e-6}
    wide = overflowing(checkpoint, tmp_path / "wide", "layer.0.output.dense.weight", 5e4)
    with pytest.raises(Float16RangeError, match=rf"{message} beyond .* 65,504: .*--precision bf16"):
        export_model(wide, tmp_path / "artifact", **options)
    assert not (tmp_path / "artifact").exists()


def test_a_checkpoint_too_large_to_run_has_no_record_of_its_range(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    options = {"targets": ("cuda",), "precisions": ("fp16",), "calibration": calibration, "max_memory": 1e-6}
    manifest = open_artifact(export_model(checkpoint, tmp_path / "artifact", **options).path)
    assert manifest.variant("cuda_fp16").float_range is None


@pytest.mark.parametrize("beyond", [(), ("linear_5", "add_3")])
def test_what_leaves_the_range_in_the_first_layers_may_in_others(encoder: Path, beyond: tuple[str, ...]) -> None:
    manifest = open_artifact(encoder)
    record = FloatRange(largest=70000.0, float32=beyond, calibration="3 texts")
    variants = [msgspec.structs.replace(variant, float_range=record) for variant in manifest.variants]
    if not beyond:
        check_twin_range(variants, 4)
        return
    message = r"first 4 layers 2 values go beyond .* 65,504: add_3, linear_5; .* raise --max-memory, or .* bf16"
    with pytest.raises(Float16RangeError, match=message):
        check_twin_range(variants, 4)


def test_int8_for_processors_and_fp16_for_gpus_share_an_artifact(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    options = {"targets": ("cpu", "cuda"), "precisions": ("int8", "fp16"), "calibration": calibration}
    manifest = open_artifact(export_model(checkpoint, tmp_path / "artifact", **options).path)
    precisions = [(variant.target, variant.precision, variant.verified) for variant in manifest.variants]
    assert precisions[0] == ("portable", "fp32", True)
    assert precisions[-2:] == [("cuda_packed", "fp16", False), ("cuda", "fp16", False)]
    assert manifest.report.fidelity is not None
    assert not any("cuda" in row.variant for row in manifest.report.fidelity.rows)


def test_a_maximum_over_tokens_has_no_packed_graph(calibration: Path, tmp_path: Path) -> None:
    """Packed, it would hold every row once a text."""
    head = HeadSpec(pooling={"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True})
    folder = save_checkpoint(tmp_path / "checkpoint", "BertModel", head)
    options = {"targets": ("cuda",), "precisions": ("fp16",), "calibration": calibration}
    artifact = export_model(folder, tmp_path / "artifact", **options).path
    assert list(flags(open_artifact(artifact))) == ["portable_fp32", "cuda_fp16"]
