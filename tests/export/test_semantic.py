"""The semantic attention in torch against transformers' own eager attention and against numpy; what it refuses."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from little_graphs import attention_feeds, bare_attention, random, run_semantic
from tiny_decoders import LAYER_TYPES, TINY_DECODERS, VOCAB_SIZE, WINDOW, build_decoder, draw_wide
from tiny_decoders import SIZES as DECODER_SIZES
from tiny_models import SIZES, TINY_MODELS
from torch import Tensor
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from poolgraph.errors import ExportError
from poolgraph.export.arch_interface import build_backbone
from poolgraph.export.direct_program import translate
from poolgraph.export.known_shapes import known_shapes
from poolgraph.export.packing import packed
from poolgraph.export.semantic import _interface_attention, _interface_mask, _read_window, attention
from poolgraph.export.spare_notes import code_on_demand, spared_notes

LENGTH = 40
LENGTHS = (40, 1, 9, 25)


def padded(side: str) -> Tensor:
    mask = torch.zeros(len(LENGTHS), LENGTH, dtype=torch.int64)
    for row, length in zip(mask, LENGTHS, strict=True):
        row[LENGTH - length if side == "left" else 0 : LENGTH if side == "left" else length] = 1
    return mask


def assert_same_rows(reference: Any, *, with_positions: bool = True) -> None:
    """The same weights give the same rows over padding on either side, and over texts of one length without a mask."""
    ours = build_backbone(type(reference), reference.config)
    ours.load_state_dict(reference.state_dict())
    ids = torch.randint(2, VOCAB_SIZE, (len(LENGTHS), LENGTH), generator=torch.Generator().manual_seed(1))
    for side in ("right", "left", None):
        mask = padded(side) if side else None
        positions = torch.arange(LENGTH)[None] if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if with_positions:
            arguments["position_ids"] = positions
        with torch.no_grad():
            expected, found = (model(**arguments).last_hidden_state for model in (reference, ours.eval()))
        tokens = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        assert found.isfinite().all()
        assert (expected - found)[tokens].abs().max() <= 1e-5 * expected[tokens].abs().max()


@pytest.mark.parametrize("name", TINY_DECODERS)
def test_decoders_equal_transformers(name: str) -> None:
    assert_same_rows(build_decoder(name))


def sunk_config(family: str) -> Any:
    sizes = {**DECODER_SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    return getattr(transformers, f"{family}Config")(**sizes)


@pytest.mark.parametrize("family", ["OpenAIPrivacyFilter", "GptOss"])
def test_sinks_equal_transformers(family: str) -> None:
    model_class = getattr(transformers, f"{family}Model")
    assert_same_rows(draw_wide(model_class._from_config(sunk_config(family), attn_implementation="eager")))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen2Model", {"is_causal": False}),
        ("LlamaModel", {"is_causal": False}),
        ("MistralModel", {"is_causal": False}),  # its window then holds one token more on either side
        ("MistralModel", {"sliding_window": None}),
        ("MistralModel", {"sliding_window": 1}),
        ("Gemma2Model", {"is_causal": False}),
        ("Qwen2Model", {"layer_types": LAYER_TYPES, "sliding_window": WINDOW, "use_sliding_window": True}),
        ("Gemma3TextModel", {"use_bidirectional_attention": False}),
    ],
    ids=str,
)
def test_decoders_configured_otherwise_equal_transformers(name: str, changes: dict[str, Any]) -> None:
    assert_same_rows(build_decoder(name, **changes))


@pytest.mark.parametrize("name", ["BertModel", "RobertaModel", "XLMRobertaModel", "DistilBertModel"])
def test_encoders_equal_transformers(name: str) -> None:
    model_class, config = getattr(transformers, name), TINY_MODELS[name].config()
    model = draw_wide(model_class._from_config(config, attn_implementation="eager"))
    assert_same_rows(model, with_positions=False)


@pytest.mark.parametrize("family", ["Electra", "Albert"])
def test_further_encoders_see_both_sides(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(vocab_size=VOCAB_SIZE, embedding_size=16, **SIZES)
    model_class = getattr(transformers, f"{family}Model")
    assert_same_rows(draw_wide(model_class._from_config(config, attn_implementation="eager")))


@pytest.mark.parametrize(
    "inputs", [(), ("mask",), ("bias",), ("mask", "bias"), ("sinks",), ("mask", "bias", "sinks")], ids="-".join
)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, ""),
        ({"causal": True}, ", causal=1"),
        ({"left_window": 2, "right_window": 1}, ", left_window=2, right_window=1"),
        ({"causal": True, "left_window": 3, "softcap": 1.5}, ", causal=1, left_window=3, softcap=1.5"),
    ],
)
def test_eager_attention_equals_numpy(options: dict[str, Any], text: str, inputs: tuple[str, ...]) -> None:
    shape = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 4}
    feeds = attention_feeds(3, 9, **shape)
    mask = np.ones((3, 9), dtype=bool)
    mask[0, 5:] = mask[1, :4] = mask[2] = False
    values = {"mask": mask, "bias": random(1, 6, 9, 9, seed=5), "sinks": random(6, seed=6) * 2}
    given = {name: values[name] for name in inputs}
    expected = -run_semantic(bare_attention(text, inputs=inputs, **shape), **feeds, **given)[0]
    query, key, value = (torch.tensor(feeds[name]) for name in "qkv")
    names = {"mask": "attention_mask", "bias": "attention_bias", "sinks": "sinks"}
    extra = {names[name]: torch.tensor(array) for name, array in given.items()}
    found = attention(query, key, value, num_heads=6, num_kv_heads=2, scale=0.7, **options, **extra)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"causal": True, "left_window": 3}])
def test_packed_attention_equals_each_text_alone(options: dict[str, Any]) -> None:
    shape = {"num_heads": 6, "num_kv_heads": 2}
    feeds = {name: torch.tensor(rows) for name, rows in attention_feeds(1, 20, head_dim=4, **shape).items()}
    bounds = [0, 1, 8, 12, 20]
    with packed(torch.tensor(bounds)):
        found = attention(*feeds.values(), scale=0.7, **shape, **options)
    for start, end in itertools.pairwise(bounds):
        alone = attention(*(rows[:, start:end] for rows in feeds.values()), scale=0.7, **shape, **options)
        torch.testing.assert_close(found[:, start:end], alone)


class Rows(torch.nn.Module):
    """A backbone with its positions, as the pooling module gives them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None:
            positions = torch.arange(input_ids.shape[1])[None]
        else:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        rows = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions)
        result: Tensor = rows.last_hidden_state
        return result


@pytest.mark.parametrize(
    ("name", "with_mask", "expected"),
    [
        ("Qwen3Model", True, [(4, 2, 1, -1, 0, 0.0)] * 2),
        ("Gemma2Model", False, [(4, 2, 1, WINDOW - 1, 0, 5.0), (4, 2, 1, -1, 0, 5.0)]),
        ("Gemma3TextModel", True, [(4, 1, 0, 4, 4, 0.0), (4, 1, 0, -1, -1, 0.0)]),  # half its window a side
        ("Gemma3TextModel", False, [(4, 1, 0, 4, 4, 0.0), (4, 1, 0, -1, -1, 0.0)]),
        ("ModernBertModel", True, [(4, 4, 0, -1, -1, 0.0), (4, 4, 0, 4, 4, 0.0)]),
        ("GPT2Model", False, [(4, 4, 1, -1, 0, 0.0)] * 2),
    ],
)
def test_a_layer_traces_to_one_node(name: str, with_mask: bool, expected: list[tuple[float, ...]]) -> None:
    graph = trace(build_backbone(getattr(transformers, name), TINY_DECODERS[name].config()).eval(), with_mask)
    keys = ("num_heads", "num_kv_heads", "causal", "left_window", "right_window", "softcap")
    nodes = [node for node in graph if node.domain == "poolgraph"]
    assert [tuple(node.attributes[key].value for key in keys) for node in nodes] == expected
    assert [len([value for value in node.inputs if value is not None]) for node in nodes] == [3 + with_mask] * 2
    assert "Softmax" not in {node.op_type for node in graph}


@pytest.mark.parametrize("family", ["OpenAIPrivacyFilter", "GptOss"])
def test_sinks_are_the_last_input_of_the_node(family: str) -> None:
    backbone = build_backbone(getattr(transformers, f"{family}Model"), sunk_config(family)).eval()
    nodes = [node for node in trace(backbone, with_mask=True) if node.domain == "poolgraph"]
    names = [[value and value.name for value in node.inputs[4:]] for node in nodes]
    assert names == [[None, None, f"model.layers.{layer}.self_attn.sinks"] for layer in range(2)]


def trace(backbone: torch.nn.Module, with_mask: bool) -> ir.Graph:
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", max=128)}
    ids = torch.ones(2, 7, dtype=torch.int64)
    arguments = {"input_ids": ids, **({"attention_mask": ids} if with_mask else {})}
    shapes = dict.fromkeys(arguments, axes)
    with torch.no_grad(), spared_notes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with known_shapes(), code_on_demand():
            program = torch.export.export(Rows(backbone), (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
        exported = translate(program, dynamo=True, optimize=False, opset_version=20, verbose=False)
    assert exported is not None
    graph: ir.Graph = exported.model.graph
    return graph


@pytest.mark.parametrize(
    ("mask_function", "window"),
    [
        (causal_mask_function, (-1, 0)),
        (sliding_window_causal_mask_function(5), (4, 0)),
        (sliding_window_causal_mask_function(1), (0, 0)),
        (sliding_window_bidirectional_mask_function(5), (5, 5)),
        (lambda batch, head, query, key: query >= 0, (-1, -1)),
    ],
)
def test_a_mask_says_its_window(mask_function: Any, window: tuple[int, int]) -> None:
    assert _read_window(mask_function, 10) == window


def test_a_mask_that_is_no_window_is_refused() -> None:
    with pytest.raises(ExportError, match="no window around each token"):
        _read_window(lambda batch, head, query, key: (key // 4 == query // 4) & (key <= query), 10)
    with pytest.raises(ExportError, match="depends on more than distances"):
        _read_window(chunked_causal_mask_function(4, torch.zeros(0, dtype=torch.int64)), 10)


@pytest.mark.parametrize("name", ["GemmaModel", "Gemma2Model"])
def test_a_layer_and_its_mask_that_differ_are_refused(name: str) -> None:
    """transformers' own implementations differ here: its eager masks stay causal, flash attention is told otherwise."""
    config = TINY_DECODERS[name].config()
    config.use_bidirectional_attention = True
    model = build_backbone(getattr(transformers, name), config)
    with pytest.raises(ExportError, match=r"Attention asks for attention within .* its mask for"):
        model(input_ids=torch.ones(2, 5, dtype=torch.int64), attention_mask=torch.ones(2, 5, dtype=torch.int64))


def call(*, mask: Tensor | None = None, value_dim: int = 4, key_length: int = 3, **options: Any) -> None:
    query, key = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, key_length, 4)
    _interface_attention(torch.nn.Identity(), query, key, torch.zeros(1, 2, key_length, value_dim), mask, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": torch.zeros(2)}, "Identity hands cache to its attention"),
        ({"head_mask": torch.zeros(2), "indices": [1]}, "hands head_mask, indices to"),
        ({"cu_seq_lens_q": torch.zeros(2)}, "hands cu_seq_lens_q to"),
        ({"mask": torch.zeros(1, 1, 3, 3)}, "masks attention with 4 axes"),
        ({"value_dim": 8}, "query, key and value heads of 4, 4 and 8 numbers"),
        ({"key_length": 5}, "attends to another sequence"),
        ({"sliding_window": 0}, "sliding_window of 0; it is 1 or more"),
    ],
)
def test_what_the_op_lacks_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        call(**arguments)


def test_what_changes_no_answer_is_accepted() -> None:
    call(dropout=0.0, output_attentions=True, position_ids=torch.zeros(1), s_aux=None, softcap=None)


def test_masks_of_several_kinds_keep_their_notes_apart() -> None:
    shared = torch.ones(1, 4, dtype=torch.bool)
    masks = [
        _interface_mask(attention_mask=shared, mask_function=function)
        for function in (causal_mask_function, sliding_window_causal_mask_function(2))
    ]
    assert [vars(mask)["poolgraph_window"] for mask in masks] == [(-1, 0), (1, 0)]
    assert _interface_mask(attention_mask=None, mask_function=causal_mask_function) is None


def test_a_module_that_does_not_say_sees_both_sides() -> None:
    value = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    rows, _ = _interface_attention(torch.nn.Identity(), torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), value, None)
    assert torch.equal(rows, torch.ones(1, 3, 1, 4))
