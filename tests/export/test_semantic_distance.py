"""The bias by distance in torch: the bits of the models' own biases, and one node in a trace."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny_jina_bert import SLOPES
from tiny_models import SIZES, TINY_MODELS, VOCAB_SIZE
from torch import Tensor, nn

from poolgraph.export import arch_mpnet, arch_t5
from poolgraph.export.arch_jina_bert import JinaBertModel
from poolgraph.export.direct_program import translate
from poolgraph.export.known_shapes import known_shapes
from poolgraph.export.semantic_distance import distance_bias, distances
from poolgraph.export.spare_notes import code_on_demand, spared_notes

each_length = pytest.mark.parametrize("length", [1, 2, 7, 130, 300])
"""To beyond the farthest distance that has a bucket of its own."""


@each_length
def test_mpnets_bias_has_the_bits_of_its_own(length: int) -> None:
    config = TINY_MODELS["MPNetModel"].config()
    model = arch_mpnet.build_backbone(transformers.MPNetModel, config)
    encoder: Any = model.encoder
    nn.init.normal_(encoder.relative_attention_bias.weight)
    rows = torch.zeros(1, length, config.hidden_size)
    expected = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.compute_position_bias(encoder, rows)
    assert torch.equal(encoder.compute_position_bias(rows), expected)


@each_length
def test_t5s_bias_has_the_bits_of_its_own(length: int) -> None:
    config = transformers.T5Config(vocab_size=VOCAB_SIZE, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    model = arch_t5.build_backbone(transformers.T5EncoderModel, config)
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    nn.init.normal_(attention.relative_attention_bias.weight)
    expected = type(attention).compute_bias(attention, length, length)
    assert torch.equal(attention.compute_bias(length, length), expected)


@each_length
def test_jinas_bias_falls_with_the_distance(length: int) -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(num_attention_heads=len(SLOPES)))
    found = JinaBertModel._bias(model, torch.zeros(1, length, dtype=torch.int64))
    index = torch.arange(length)
    distance = (index[None, :] - index[:, None]).abs().float()
    assert torch.equal(found, (-torch.tensor(SLOPES)[:, None, None] * distance)[None])


def test_columns_are_distances_to_the_right() -> None:
    columns = distances(4, torch.device("cpu"))
    assert columns.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    found = distance_bias(columns[None].float(), 4)
    assert found.shape == (1, 1, 4, 4)
    assert found[0, 0].tolist() == [[0, 1, 2, 3], [-1, 0, 1, 2], [-2, -1, 0, 1], [-3, -2, -1, 0]]


class Bias(nn.Module):
    """T5's bias of a text."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.T5Config(**{**SIZES, "num_heads": 4, "num_layers": 1}, vocab_size=VOCAB_SIZE)
        model: Any = arch_t5.build_backbone(transformers.T5EncoderModel, config)
        self.attention = model.encoder.block[0].layer[0].SelfAttention

    def forward(self, input_ids: Tensor) -> Tensor:
        bias: Tensor = self.attention.compute_bias(input_ids.shape[1])
        return bias


def test_a_bias_traces_to_one_node_of_a_row_of_distances() -> None:
    axes = {"input_ids": {1: torch.export.Dim("sequence_length", max=128)}}
    arguments = {"input_ids": torch.ones(1, 7, dtype=torch.int64)}
    with torch.no_grad(), spared_notes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with known_shapes(), code_on_demand():
            program = torch.export.export(Bias().eval(), (), kwargs=arguments, dynamic_shapes=axes, strict=False)
        exported = translate(program, dynamo=True, optimize=False, opset_version=20, verbose=False)
    assert exported is not None
    (node,) = [node for node in exported.model.graph if node.domain == "poolgraph"]
    (by_distance,) = node.inputs
    assert node.op_type == "DistanceBias"
    assert by_distance.shape[0] == 4
    squares = [value for it in exported.model.graph for value in it.outputs if len(value.shape or ()) > 2]
    assert squares == [node.outputs[0]]
