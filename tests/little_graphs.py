"""Little graphs for tests of passes: written as text, run on ONNX Runtime as they are, semantic ops in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

HEADER = '<ir_version: 10, opset_import: ["": 20, "poolgraph": 1]>\n'
SIZE, HEADS = 8, 2
LOWEST = np.finfo(np.float32).min


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(text: str, **weights: np.ndarray) -> ir.Model:
    """A model of ONNX's text format; a name that no node makes is one of ``weights``, its dots written ``__``."""
    model = ir.from_onnx_text(
        HEADER + text, initializers=[ir.tensor(array, name=name) for name, array in weights.items()]
    )
    for name, array in weights.items():
        value = model.graph.initializers[name]
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.name = name.replace("__", ".")
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


class Attention(OpRun):
    """The semantic op in numpy; the evaluator adds the attributes of the standard operator of the same name."""

    op_domain = "poolgraph"

    def _run(
        self,
        query,
        key,
        value,
        mask=None,
        bias=None,
        cu_seqlens=None,
        sinks=None,
        num_heads=None,
        num_kv_heads=None,
        scale=None,
        causal=0,
        left_window=-1,
        right_window=-1,
        softcap=0.0,
        **_others,
    ):
        num_kv_heads = num_kv_heads or num_heads

        def heads(rows, count):
            split = rows.astype(np.float64).reshape(*rows.shape[:2], count, -1).transpose(0, 2, 1, 3)
            return split.repeat(num_heads // count, axis=1)

        scores = heads(query, num_heads) @ heads(key, num_kv_heads).transpose(0, 1, 3, 2) * scale
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias
        for row, column in np.ndindex(scores.shape[2:]):
            ahead = column - row
            too_late = ahead > 0 if causal else -1 < right_window < ahead
            if too_late or -1 < left_window < -ahead:
                scores[:, :, row, column] = LOWEST
        if cu_seqlens is not None:
            text = np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(cu_seqlens))
            of_queries = text if query.shape[1] == key.shape[1] else np.arange(query.shape[1])
            scores = np.where(of_queries[:, None] == text, scores, LOWEST)
        if mask is not None:
            scores = np.where(mask[:, None, None, :], scores, LOWEST)
        sinks = np.full(num_heads, -np.inf) if sinks is None else sinks
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))], axis=-1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights[..., :-1] / weights.sum(-1, keepdims=True)
        rows = (weights @ heads(value, num_kv_heads)).transpose(0, 2, 1, 3)
        return (rows.reshape(query.shape).astype(np.float32),)


class DistanceBias(OpRun):
    """The semantic op in numpy."""

    op_domain = "poolgraph"

    def _run(self, by_distance):
        last = by_distance.shape[1] // 2
        index = np.arange(last + 1)
        return (by_distance[None, :, last + index[None, :] - index[:, None]],)


def evaluator(model: ir.Model) -> ReferenceEvaluator:
    """The model as it is now, whatever is done to it later."""
    return ReferenceEvaluator(ir.to_proto(model), new_ops=[Attention, DistanceBias])


def run_semantic(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return evaluator(model).run(None, feeds)


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return session(model).run(None, feeds)


def assert_close(expected: list[np.ndarray], found: list[np.ndarray]) -> None:
    for left, right in zip(expected, found, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(right, left, rtol=1e-5, atol=1e-6)


ATTENTION = """g (float[batch_size,sequence_length,8] xINPUTS) => (float[batch_size,sequence_length,8] y)
<float[batch_size,sequence_length,8] q, float[batch_size,sequence_length,8] k, float[batch_size,sequence_length,8] v,
 float[batch_size,sequence_length,8] rows, float[batch_size,sequence_length,8] z>
{
  xq = MatMul(x, layer__query__weight)  q = Add(xq, layer__query__bias)
  xk = MatMul(x, layer__key__weight)    k = Add(xk, layer__key__bias)
  xv = MatMul(x, layer__value__weight)  v = Add(xv, layer__value__bias)
  rows = poolgraph.Attention<num_heads=2, scale=0.7>(q, k, vMORE)
  y = Neg(rows)
}"""


def attention_model(*, inputs: str = "", more: str = "", replace: tuple[str, str] = ("", "")) -> ir.Model:
    weights: dict[str, np.ndarray] = {}
    for seed, name in enumerate(("query", "key", "value"), start=10):
        weights[f"layer__{name}__weight"] = random(SIZE, SIZE, seed=seed)
        weights[f"layer__{name}__bias"] = random(SIZE, seed=seed + 10)
    text = ATTENTION.replace("INPUTS", inputs).replace("MORE", more).replace(*replace)
    return build(text, **{name: array for name, array in weights.items() if name in text})


X = random(3, 5, SIZE)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=bool)
BIAS = random(1, HEADS, 5, 5, seed=30)


def bare_attention(
    attributes: str, *, num_heads: int, num_kv_heads: int, head_dim: int, inputs: Sequence[str] = (), layers: int = 1
) -> ir.Model:
    """A chain of attentions over the graph's own query, key and value; ``inputs`` names what else it has."""
    rows = [f"float[batch_size,sequence_length,{count * head_dim}]" for count in (num_heads, num_kv_heads)]
    bias = f"float[1,{num_heads},sequence_length,sequence_length]"
    types = {
        "mask": "bool[batch_size,sequence_length] mask",
        "bias": f"{bias} bias",
        "distances": f"float[{num_heads},columns] distances",
        "packed": "int64[bounds] cu_seqlens",
        "sinks": f"float[{num_heads}] sinks",
    }
    given = ", ".join([f"{rows[0]} q, {rows[1]} k, {rows[1]} v", *(types[name] for name in inputs)])
    places = {"mask": "mask", "bias": "bias", "packed": "cu_seqlens", "sinks": "sinks"}
    if "distances" in inputs:
        places["bias"] = "expanded"
    read = {"bias" if name == "distances" else name for name in inputs}
    more = "".join(f", {value if name in read else ''}" for name, value in places.items()).rstrip(", ")
    heads = f"num_heads={num_heads}, num_kv_heads={num_kv_heads}"
    lines = [
        f"y{layer + 1} = poolgraph.Attention<{heads}, scale=0.7{attributes}>({'q' if layer == 0 else f'y{layer}'}, k, v"
        f"{more})"
        for layer in range(layers)
    ]
    values = ", ".join(f"{rows[0]} y{layer + 1}" for layer in range(layers))
    if "distances" in inputs:
        lines.insert(0, "expanded = poolgraph.DistanceBias(distances)")
        values += f", {bias} expanded"
    return build(f"g ({given}) => ({rows[0]} z) <{values}> {{ {'  '.join(lines)}  z = Neg(y{layers}) }}")


def attention_feeds(
    batch_size: int, length: int, *, num_heads: int, num_kv_heads: int, head_dim: int
) -> dict[str, np.ndarray]:
    """Query, key and value of ``bare_attention``."""
    widths = {"q": num_heads * head_dim, "k": num_kv_heads * head_dim, "v": num_kv_heads * head_dim}
    return {
        name: random(batch_size, length, width, seed=seed + length) for seed, (name, width) in enumerate(widths.items())
    }
