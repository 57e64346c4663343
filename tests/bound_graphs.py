"""Hand-made graphs in the layouts that bound sessions run, artifacts of them, and what they answer by plain numpy.

Each text's rows are ``table[ids] @ weight + types[token_type]``; the sequence answer is the mean over the attended rows
behind the prompt.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import Graph, Tensor, Variant
from poolgraph.runtime.tokenizer import EncodedText

SIZE = 8
VOCABULARY = 64

_HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'

_SHAPES = {
    "padded": {
        "input_ids": ("int64", ("batch_size", "sequence_length")),
        "attention_mask": ("int64", ("batch_size", "sequence_length")),
        "token_type_ids": ("int64", ("batch_size", "sequence_length")),
        "attended_mask": ("int64", ("batch_size", "sequence_length")),
        "prompt_length": ("int64", ("batch_size",)),
        "total_sequence_length": ("int32", ()),
    },
    "packed": {
        "input_ids": ("int64", ("num_tokens",)),
        "cu_seqlens": ("int64", ("batch_size + 1",)),
        "token_offset": ("int32", ("batch_size", "sequence_length")),
        "token_type_ids": ("int64", ("num_tokens",)),
        "attended_mask": ("int64", ("num_tokens",)),
        "prompt_length": ("int64", ("batch_size",)),
    },
}

_ROWS = """words = Gather(table, input_ids)
  hidden = MatMul(words, weight)
  typed = Gather(types, token_type_ids)
  rows = Add(hidden, typed)
"""

_PADDED = """shape = Shape(input_ids)
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  length = Gather(shape, one)
  positions = Range(zero, length, one)
  axis = Constant<value_ints=[1]>()
  last = Constant<value_ints=[-1]>()
  starts = Unsqueeze(prompt_length, axis)
  behind = GreaterOrEqual(positions, starts)
  behind_number = Cast<to=7>(behind)
  attended = Mul(attention_mask, attended_mask)
  kept = Mul(attended, behind_number)
  weights = Cast<to=1>(kept)
  column = Unsqueeze(weights, last)
  masked = Mul(rows, column)
  total = ReduceSum<keepdims=0>(masked, axis)
  count = ReduceSum<keepdims=1>(weights, axis)
  mean = Div(total, count)
  zero_int32 = Constant<value=int32 {0}>()
  one_int32 = Constant<value=int32 {1}>()
  span = Range(zero_int32, total_sequence_length, one_int32)
  span_number = Cast<to=1>(span)
  last_place = ReduceMax<keepdims=0>(span_number)
  same = Equal(attention_mask, attention_mask)
  ones = Cast<to=1>(same)
  lengths = ReduceSum<keepdims=0>(ones, axis)
  longest = ReduceMax<keepdims=0>(lengths)
  one_float = Constant<value_float=1.0>()
  expected_place = Sub(longest, one_float)
  wrong_number = Sub(last_place, expected_place)
  pooled = Add(mean, wrong_number)
"""
"""Adds to every answer by how much ``total_sequence_length`` is off; read as kernels read it, in the host's memory."""

_PACKED = """shape = Shape(input_ids)
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  first_axis = Constant<value_ints=[0]>()
  tokens = Gather(shape, zero)
  positions = Range(zero, tokens, one)
  column_axis = Constant<value_ints=[1]>()
  from_one = Constant<value_ints=[1]>()
  minus_one = Constant<value_ints=[-1]>()
  far = Constant<value_ints=[1000000]>()
  starts = Slice(cu_seqlens, first_axis, minus_one, first_axis)
  stops = Slice(cu_seqlens, from_one, far, first_axis)
  behind_prompt = Add(starts, prompt_length)
  low = Unsqueeze(behind_prompt, column_axis)
  high = Unsqueeze(stops, column_axis)
  after = GreaterOrEqual(positions, low)
  before = Less(positions, high)
  inside = And(after, before)
  inside_number = Cast<to=7>(inside)
  kept = Mul(inside_number, attended_mask)
  weights = Cast<to=1>(kept)
  total = MatMul(weights, rows)
  count = ReduceSum<keepdims=1>(weights, column_axis)
  mean = Div(total, count)
  lengths = Sub(stops, starts)
  longest = ReduceMax<keepdims=0>(lengths, first_axis)
  same = Equal(token_offset, token_offset)
  ones = Cast<to=7>(same)
  widths = ReduceSum<keepdims=0>(ones, column_axis)
  allowed = ReduceMax<keepdims=0>(widths, first_axis)
  excess = Sub(longest, allowed)
  excess_number = Cast<to=1>(excess)
  none = Constant<value_float=0.0>()
  wrong_number = Max(excess_number, none)
  pooled = Add(mean, wrong_number)
"""
"""Adds to every answer by how much the longest text is longer than ``token_offset`` says."""

_BODIES = {
    ("padded", "sequence"): _ROWS + _PADDED,
    ("packed", "sequence"): _ROWS + _PACKED,
    ("padded", "token"): _ROWS + "raw_token_embeddings = Identity(rows)\n",
    ("packed", "token"): _ROWS + "raw_token_embeddings = Identity(rows)\n",
}

_OUTPUTS = {
    ("padded", "sequence"): ("pooled", ("batch_size", SIZE)),
    ("packed", "sequence"): ("pooled", ("batch_size", SIZE)),
    ("padded", "token"): ("raw_token_embeddings", ("batch_size", "sequence_length", SIZE)),
    ("packed", "token"): ("raw_token_embeddings", ("num_tokens", SIZE)),
}


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "table": rng.standard_normal((VOCABULARY, SIZE)).astype(np.float32),
        "weight": rng.standard_normal((SIZE, SIZE)).astype(np.float32),
        "types": rng.standard_normal((2, SIZE)).astype(np.float32),
    }


def reference_rows(text: EncodedText) -> np.ndarray:
    """What the token graph answers, (num_tokens, size)."""
    own = weights()
    types = np.zeros_like(text.input_ids) if text.token_type_ids is None else text.token_type_ids
    return own["table"][text.input_ids] @ own["weight"] + own["types"][types]


def reference(text: EncodedText) -> np.ndarray:
    """What the sequence graph answers, (size,)."""
    kept = np.arange(text.num_tokens) >= text.prompt_length
    if text.attended is not None:
        kept &= text.attended.astype(bool)
    return reference_rows(text)[kept].mean(0)


def build_graph(layout: str, family: str, file: str) -> tuple[onnx.ModelProto, Graph]:
    """A graph and its record."""
    shapes = _SHAPES[layout]
    name, output = _OUTPUTS[layout, family]
    text = f"{_HEADER} g ({_sign(shapes)}) => (float[{_join(output)}] {name}) {{ {_BODIES[layout, family]} }}"
    # The text format has no name for an axis that is a sum.
    model = onnx.parser.parse_model(text.replace("batch_size + 1", "bounds"))
    for weight, array in weights().items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight))
    tensors = tuple(Tensor(name=key, dtype=dtype, shape=shape) for key, (dtype, shape) in shapes.items())
    raw = Tensor(name=name, dtype="float32", shape=output)
    return model, Graph(file=file, inputs=tensors, outputs=(raw,), raw_output=name)


def _sign(shapes: dict[str, tuple[str, tuple[str, ...]]]) -> str:
    return ", ".join(f"{dtype}[{_join(shape)}] {name}" for name, (dtype, shape) in shapes.items())


def _join(shape: tuple[object, ...]) -> str:
    return ",".join(map(str, shape))


def build_variant(directory: Path, layout: str, providers: tuple[str, ...]) -> Variant:
    """Write a variant's graphs and return its record."""
    (directory / "onnx").mkdir(parents=True, exist_ok=True)
    graphs = {}
    for family in ("sequence", "token"):
        file = f"onnx/{layout}_{family}.onnx"
        model, graphs[family] = build_graph(layout, family, file)
        onnx.save(model, directory / file)
    return Variant(
        name=f"cuda_{layout}",
        target="cuda" if layout == "padded" else "cuda_packed",
        precision="fp32",
        layout=layout,
        providers=providers,
        graphs=graphs,
        session_options={"graph_optimization_level": "basic"},
        verified=True,
    )


def random_texts(lengths: list[int], seed: int = 0) -> list[EncodedText]:
    """Texts of these lengths with prompts, token types and tokens that are not attended to."""
    rng = np.random.default_rng(seed)
    texts = []
    for length in lengths:
        attended = rng.integers(0, 2, length)
        attended[-1] = 1
        texts.append(
            EncodedText(
                input_ids=rng.integers(1, VOCABULARY, length),
                token_type_ids=rng.integers(0, 2, length) if rng.integers(2) else None,
                prompt_length=int(rng.integers(0, length)),
                attended=attended if rng.integers(2) else None,
            )
        )
    return texts


def add_to_artifact(artifact: Path, manifest: object, layout: str, providers: tuple[str, ...]) -> None:
    """Add a variant of a layout to a tiny artifact on disk."""
    variant = build_variant(artifact, layout, providers)
    changed = msgspec.structs.replace(manifest, variants=(*manifest.variants, variant), files=record_files(artifact))
    save_manifest(artifact, changed)
