"""fp16: scores of attention that no CUDA kernel takes, as with sinks, are measured, and stay in float32 if large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from cuda_graphs import padded_feeds, random_texts
from cuda_operators import run_reference
from safetensors.torch import load_file, save_file
from tiny_decoders import SIZES, TINY_DECODERS, draw_wide, save_decoder

from poolgraph.export import targets
from poolgraph.export.exporter import export_model
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Variant
from poolgraph.runtime.providers import CUDA_PROVIDER
from poolgraph.runtime.session import provider_loads

pytestmark = [
    pytest.mark.skipif(provider_loads(CUDA_PROVIDER), reason="these exports are of a machine without"),
    pytest.mark.usefixtures("one_trace_each", "short_probes"),
]

TEXTS = random_texts((9, 1, 12))


def save_gpt_oss(folder: Path) -> None:
    """Save a mixture whose attention has sinks, in a window every other layer."""
    config = transformers.GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    )
    model = transformers.GptOssModel._from_config(config, attn_implementation="eager")
    draw_wide(model, seed=4).save_pretrained(folder)
    tokenizer = TINY_DECODERS["LlamaModel"].tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)


def save_capped(folder: Path) -> None:
    """Save a model that bends its scores and reads both ways, which no kernel does."""
    save_decoder(folder, "Gemma2Model", is_causal=False)


def enlarge(folder: Path, factor: float) -> None:
    """Make queries and keys so many times as large, and scores that squared."""
    file = folder / "model.safetensors"
    large = ("q_proj", "k_proj")
    tensors = {name: it * factor if any(part in name for part in large) else it for name, it in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def export_half(checkpoint: Path, artifact: Path) -> Variant:
    """Export for CUDA in fp16; return the padded variant."""
    texts = artifact.parent / "texts.txt"
    texts.write_text("one text\nanother text about a quick brown fox")
    options = {"convert": "embed", "targets": ("cuda",), "precisions": ("fp16",), "calibration": texts}
    export_model(checkpoint, artifact, min_cosine=0.9999, **options)  # float32's own rounding moves scores that large
    return open_artifact(artifact).variant("cuda_fp16")


def answers(artifact: Path, file: str) -> np.ndarray:
    """Pooled answers of a graph, evaluated in numpy."""
    inputs = {value.name for value in ir.load(artifact / file).graph.inputs}
    feeds = {name: array for name, array in padded_feeds(TEXTS).items() if name in inputs}
    return run_reference(artifact / file, feeds)["pooled"][: len(TEXTS)]


def scores_of(artifact: Path, variant: Variant) -> Mapping[str, ir.DataType | None]:
    graph = ir.load(artifact / variant.graphs["sequence"].file).graph
    return {str(value.name): value.dtype for node in graph for value in node.outputs if ".scores" in str(value.name)}


@pytest.fixture(autouse=True)
def any_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 is refused in fp16 for what real checkpoints compute; the tiny one is not for that."""
    monkeypatch.setattr(targets, "_check_precisions", lambda *_: None)


@pytest.mark.parametrize("save", [save_gpt_oss, save_capped])
def test_scores_beyond_the_range_are_computed_in_float32(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    enlarge(tmp_path / "checkpoint", 400.0)
    variant = export_half(tmp_path / "checkpoint", tmp_path / "artifact")
    assert variant.float_range is not None
    assert variant.float_range.largest > 65504
    kept = [name for name in variant.float_range.float32 if name.endswith(".scores")]
    assert len(kept) == SIZES["num_hidden_layers"]
    assert not [name for name in variant.float_range.float32 if "." not in name]  # queries and keys are mild
    assert ir.DataType.FLOAT16 not in scores_of(tmp_path / "artifact", variant).values()
    found = answers(tmp_path / "artifact", variant.graphs["sequence"].file)
    expected = answers(tmp_path / "artifact", "onnx/model.onnx")
    assert np.isfinite(found).all()
    assert torch.cosine_similarity(torch.tensor(found), torch.tensor(expected)).min() > 0.9995


@pytest.mark.parametrize("save", [save_gpt_oss, save_capped])
def test_mild_scores_stay_in_fp16(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    variant = export_half(tmp_path / "checkpoint", tmp_path / "artifact")
    assert variant.float_range is not None
    assert variant.float_range.float32 == ()
    types = scores_of(tmp_path / "artifact", variant)
    assert list(types.values()) == [ir.DataType.FLOAT16] * SIZES["num_hidden_layers"]


def test_scores_of_kernels_are_not_measured(tmp_path: Path) -> None:
    save_decoder(tmp_path / "checkpoint", "Qwen2Model")
    enlarge(tmp_path / "checkpoint", 400.0)
    variant = export_half(tmp_path / "checkpoint", tmp_path / "artifact")
    assert variant.float_range is not None
    assert variant.float_range.float32 == ()
    assert scores_of(tmp_path / "artifact", variant) == {}
