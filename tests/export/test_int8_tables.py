"""int8 and tables of embeddings: the size of the artifact, what it says of them, and a table that stays in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tiny_models import HeadSpec, save_head, xlm_roberta_tokenizer
from transformers import XLMRobertaConfig, XLMRobertaModel

from poolgraph import PoolingModel, export_model
from poolgraph.export import job
from poolgraph.export.build import build_module, trace_layout
from poolgraph.export.calibration_texts import CalibrationTexts
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.int8 import plan_int8
from poolgraph.export.options import make_options
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.export.twin import COPIES
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.graphs.pipeline import CPU_INT8, NATIVE_INT8, PORTABLE_INT8
from poolgraph.runtime.inspect import describe
from poolgraph.runtime.native_library import can_run
from poolgraph.runtime.providers import Machine, Wish, choose_variant

pytestmark = pytest.mark.usefixtures("one_trace_each")

VOCABULARY, HIDDEN = 60_000, 64
TABLE = "backbone.embeddings.word_embeddings.weight"
NORM = "backbone.embeddings.LayerNorm.weight"
TEXTS = CalibrationTexts("a few texts", tuple(PROBE_SENTENCES[:8]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XLM-R whose table is most of the weights."""
    folder = tmp_path_factory.mktemp("xlmr") / "checkpoint"
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    XLMRobertaModel(config).save_pretrained(folder)
    xlm_roberta_tokenizer().save_pretrained(folder)
    save_head(folder, HeadSpec(), HIDDEN)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(TEXTS.texts), encoding="utf-8")
    export_model(checkpoint, texts.parent / "artifact", precisions=("int8",), calibration=texts)
    return texts.parent / "artifact"


@pytest.fixture(scope="module")
def traced(checkpoint: Path) -> tuple[ExportPlan, ir.Model]:
    options = make_options("auto", "auto", "auto", None, None, None)
    opened = open_checkpoint(checkpoint, None)
    plan = resolve_plan(opened, options=options, precisions=("int8",), targets=("cpu",), trust_remote_code=False)
    return plan, trace_layout(plan, build_module(plan), "uniform")[0]


def test_the_artifact_is_at_most_three_tenths_of_float32(artifact: Path, checkpoint: Path) -> None:
    float32 = (checkpoint / "model.safetensors").stat().st_size
    assert 0.69 * float32 < VOCABULARY * HIDDEN * 4  # the share of XLM-R-base's
    assert sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file()) <= 0.30 * float32


def test_no_graph_holds_a_float32_table(artifact: Path) -> None:
    graphs = sorted((artifact / "onnx").glob("*.onnx"))
    assert len(graphs) == (6 if can_run(NATIVE_INT8) else 4)
    for file in graphs:
        tensors = onnx.load(file, load_external_data=False).graph.initializer
        tables = {tensor.name: tensor.data_type for tensor in tensors if list(tensor.dims) == [VOCABULARY, HIDDEN]}
        assert tables == {f"{TABLE}.int8": onnx.TensorProto.INT8}


def test_manifest_card_and_inspect_say_so(artifact: Path) -> None:
    with PoolingModel.load(artifact) as model:
        manifest: Manifest = model.manifest
    for variant in manifest.variants:
        assert variant.quantization is not None
        assert (variant.quantization.tables, variant.quantization.float32_tables) == ((TABLE,), ())
        assert {row.name: row.rewrites for row in variant.passes}["quantize_embeddings"] == 1
    quantized = manifest.variant("cpu_int8").quantization
    assert quantized is not None
    assert f"lowest {quantized.min_cosine:.7f}" in describe(manifest, artifact)
    assert f"    tables      {TABLE}\n    calibration 8 texts of texts.txt\n" in describe(manifest, artifact)
    card = (artifact / "README.md").read_text(encoding="utf-8")
    assert f"| portable_int8 | tables | {TABLE} |" in card
    assert "| cpu_int8 | held out | mean cosine 0.99" in card


def test_a_table_that_costs_too_much_stays_and_is_named(traced: tuple[ExportPlan, ir.Model]) -> None:
    """One feature far above all others, which the norm leaves out: a row's scale would round the others to nothing."""
    plan, semantic = traced[0], traced[1].clone()
    for name, index, value in ((TABLE, np.s_[:, 5], 4.0), (NORM, 5, 0.0)):
        tensor = semantic.graph.initializers[name].const_value
        assert tensor is not None
        changed = tensor.numpy().copy()
        changed[index] = value
        semantic.graph.initializers[name].const_value = ir.tensor(changed, name=name)
    found = plan_int8(plan, semantic, TEXTS)
    record = found.contrib.record
    assert (found.tables, record.tables, record.float32_tables) == ((), (), (TABLE,))
    assert record.min_cosine is not None
    for target in (CPU_INT8, PORTABLE_INT8):
        assert found.for_target(target)[1].float32_tables == (TABLE,)


def test_a_checkpoint_too_large_to_run_gets_8_bits_without_calibration(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large is what does not fit in float32, as the reference is, whatever its size in 8 bits."""
    memory = COPIES * 0.6 * (checkpoint / "model.safetensors").stat().st_size
    monkeypatch.setattr(job, "free_memory", lambda max_memory: memory)
    result = export_model(checkpoint, tmp_path / "artifact", precisions=("int8",))
    assert "a twin of the first 1 of 2 layers" in result.report.reference
    for variant in open_artifact(tmp_path / "artifact").variants:
        assert variant.quantization is not None
        assert (variant.quantization.calibration, variant.quantization.tables) == ("none", (TABLE,))


KERNELS_ON_ARM = {
    *(("", name) for name in ("Abs", "Add", "Cast", "Clip", "Concat", "CumSum", "Div", "Equal", "Expand", "Gather")),
    *(("", name) for name in ("Gelu", "LayerNormalization", "MatMul", "Max", "Mul", "Not", "QuantizeLinear", "Range")),
    *(("", name) for name in ("ReduceL2", "ReduceMax", "ReduceSum", "Reshape", "Shape", "Slice", "Split", "Squeeze")),
    *(("", name) for name in ("SimplifiedLayerNormalization", "Sub", "Tanh", "Transpose", "Unsqueeze")),
    *(("com.microsoft", name) for name in ("Attention", "GroupQueryAttention", "MultiHeadAttention")),
    ("com.microsoft", "MatMulIntegerToFloat"),
}
"""Of ONNX Runtime's CPU provider, which is the same source on every processor; its products of unsigned by signed bytes
have code for ARM's dot product (MlasGemmU8X8DispatchUdot)."""


def test_a_processor_of_arm_gets_a_graph_of_kernels_that_it_has(artifact: Path) -> None:
    machine = Machine(providers=("CPUExecutionProvider",), cpu_features=("asimd", "asimddp"))
    choice = choose_variant(open_artifact(artifact), Wish(), machine)
    assert (choice.variant.name, choice.warning) == ("cpu_int8", None)
    for graph in choice.variant.graphs.values():
        model = onnx.load(artifact / graph.file, load_external_data=False).graph
        assert {(node.domain, node.op_type) for node in model.node} <= KERNELS_ON_ARM
        types = {tensor.name: tensor.data_type for tensor in model.initializer}
        rounding = {node.output[0]: types[node.input[2]] for node in model.node if node.op_type == "QuantizeLinear"}
        products = [node for node in model.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(products) >= 4
        assert {rounding[node.input[0]] for node in products} == {onnx.TensorProto.UINT8}
        assert {types[node.input[1]] for node in products} == {onnx.TensorProto.INT8}


def test_the_portable_graph_alone(checkpoint: Path, tmp_path: Path) -> None:
    """Its weights are chosen by the uniform layout, which no target has here."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS.texts), encoding="utf-8")
    options = {"targets": ("portable",), "precisions": ("int8",), "calibration": texts}
    manifest = open_artifact(export_model(checkpoint, tmp_path / "artifact", **options).path)
    assert [(variant.name, variant.verified) for variant in manifest.variants] == [("portable_int8", True)]
    quantization = manifest.variants[0].quantization
    assert quantization is not None
    assert quantization.weights > 0
