"""Little graphs for tests of passes: written as text, run on ONNX Runtime as they are, semantic ops in numpy."""

from __future__ import annotations

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

    def _run(self, query, key, value, mask=None, bias=None, num_heads=None, scale=None, **_others):
        def heads(rows):
            return rows.reshape(*rows.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

        scores = heads(query) @ heads(key).transpose(0, 1, 3, 2) * scale
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = np.where(mask[:, None, None, :], scores, LOWEST)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        rows = (weights @ heads(value)).transpose(0, 2, 1, 3)
        return (rows.reshape(query.shape).astype(np.float32),)


def run_semantic(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return ReferenceEvaluator(ir.to_proto(model), new_ops=[Attention]).run(None, feeds)


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


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
