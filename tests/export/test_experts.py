"""Mixtures of experts, all computed, against transformers' own loop over the chosen ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packed_graphs import trace_packed
from tiny_decoders import draw_wide, save_decoder
from transformers import GptOssConfig, JambaConfig, NemotronHConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jamba.modeling_jamba import JambaExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from poolgraph.errors import ExportError
from poolgraph.export.build import lower_variant
from poolgraph.export.experts import all_experts
from poolgraph.graphs.native import FUSED, native_nodes, number
from poolgraph.graphs.pipeline import NATIVE_FP32, packed_native

SIZE, NUM_EXPERTS, NUM_CHOSEN, NUM_TOKENS = 16, 5, 2, 7
SIZES = {"hidden_size": SIZE, "num_experts_per_tok": NUM_CHOSEN, "moe_intermediate_size": 12}


def routed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    rows = torch.randn(NUM_TOKENS, SIZE, generator=source)
    weights, index = torch.rand(NUM_TOKENS, NUM_EXPERTS, generator=source).topk(NUM_CHOSEN)
    return rows, index, weights


@pytest.mark.parametrize(
    ("experts", "config"),
    [
        (Qwen3MoeExperts, lambda: Qwen3MoeConfig(num_experts=NUM_EXPERTS, **SIZES)),
        (JambaExperts, lambda: JambaConfig(num_experts=NUM_EXPERTS, intermediate_size=12, hidden_size=SIZE)),
        (GptOssExperts, lambda: GptOssConfig(num_local_experts=NUM_EXPERTS, intermediate_size=12, hidden_size=SIZE)),
        (NemotronHExperts, lambda: NemotronHConfig(n_routed_experts=NUM_EXPERTS, **SIZES)),
    ],
    ids=["gated", "Jamba's", "transposed, with biases", "without a gate"],
)
def test_all_experts_equal_the_chosen_ones(experts: Any, config: Any) -> None:
    settings = config()
    settings._experts_implementation = "eager"
    module = draw_wide(experts(settings))
    with torch.no_grad():
        torch.testing.assert_close(all_experts(module, *routed()), module(*routed()))


def test_a_norm_after_each_expert_is_refused() -> None:
    module = SimpleNamespace(has_post_expert_norm=True)
    with pytest.raises(ExportError, match="SimpleNamespace has a norm after each expert"):
        all_experts(module, *routed())


@pytest.mark.slow
@pytest.mark.usefixtures("one_trace_each")
def test_a_processor_computes_those_alone_that_count(tmp_path: Path) -> None:
    traced = trace_packed(save_decoder(tmp_path / "checkpoint", "Qwen3MoeModel"))
    lowered = lower_variant(traced.model, traced.reports, packed_native(NATIVE_FP32), traced.kind)
    for model in lowered.models.values():
        nodes = native_nodes(model, FUSED.experts)
        assert [number(node, "num_experts") for node in nodes] == [4, 4]
        for index, node in enumerate(nodes):
            own = [str(value.name) for value in node.inputs if value is not None and value.const_value is not None]
            assert [name.partition(".reshaped")[0].partition(".transposed")[0] for name in own] == [
                f"backbone.layers.{index}.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
            ]
