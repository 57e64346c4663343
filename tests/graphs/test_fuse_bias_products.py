"""Products in 16 bits that take in their bias and GELU, on little graphs: which do, and what they answer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cuda_operators import run_reference
from little_graphs import SIZE, build, ops, random

from poolgraph.graphs.check_cuda import check_cuda
from poolgraph.graphs.cleanup import remove_dead_nodes
from poolgraph.graphs.convert_float import convert_floats
from poolgraph.graphs.fuse_bias_products import fuse_bias_products, has_bias_products
from poolgraph.graphs.fuse_gelu import fuse_gelu
from poolgraph.graphs.passes import run_passes

PRODUCT = """g (int64[batch_size,sequence_length] ids) => (float[batch_size,sequence_length,WIDTH] y)
<float[batch_size,sequence_length,WIDTH] m, float[batch_size,sequence_length,WIDTH] a, float[8,8] v>
{ x = Gather(backbone__table, ids)  m = MatMul(x, backbone__w)  BODY }"""
IDS = {"ids": np.array([[0, 1, 2], [3, 4, 0]])}


def product(body: str, width: int = SIZE, **shapes: tuple[int, ...]) -> ir.Model:
    """A product and what follows it; keywords are other shapes of its weights."""
    sizes = {"table": (5, SIZE), "w": (SIZE, width), "b": (width,), **shapes}
    weights = {name: random(*sizes[name], seed=seed) for seed, name in enumerate(sizes)}
    used = {f"backbone__{name}": array for name, array in weights.items() if name != "b" or "backbone__b" in body}
    return build(PRODUCT.replace("BODY", body).replace("WIDTH", str(width)), **used)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("body", "others"),
    [
        ("y = Add(m, backbone__b)", ["Cast"]),
        ("y = Add(backbone__b, m)", ["Cast"]),
        ("a = Add(m, backbone__b)  y = Gelu(a)", ["Cast"]),
        ('a = Add(m, backbone__b)  y = Gelu<approximate="tanh">(a)', ["Cast"]),
        ("a = Add(m, backbone__b)  y = Relu(a)", ["Cast", "Relu"]),
    ],
)
def test_products_take_in_their_bias_and_gelu(body: str, others: list[str], precision: str) -> None:
    model = product(body)
    run_passes(model, (fuse_gelu, convert_floats(precision), remove_dead_nodes))
    expected = run_reference(model, IDS)["y"]
    assert not has_bias_products(model)
    assert fuse_bias_products(model) == 1
    remove_dead_nodes(model)
    assert ops(model) == ["Gather", "BiasMatMul", *others]
    assert has_bias_products(model)
    assert check_cuda(model) == []
    step = {"fp16": 2.0**-10, "bf16": 2.0**-7}[precision]
    np.testing.assert_allclose(run_reference(model, IDS)["y"], expected, rtol=step, atol=TANH_ERROR + step)
    assert fuse_bias_products(model) == 0


TANH_ERROR = 5e-4
"""Of GELU by a hyperbolic tangent, at most."""


BIASED = "y = Add(m, backbone__b)"


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("y = Add(m, m)", {}),
        ("a = Add(m, backbone__b)  y = Add(a, m)", {}),  # the product has another reader
        ("y = Gelu(m)", {}),
        ('y = Gelu<approximate="tanh">(m)', {}),
        (BIASED, {"w": (SIZE, 12), "b": (12,)}),  # no multiple of 8
        (BIASED, {"table": (5, 12), "w": (12, SIZE)}),
        (BIASED, {"b": (1,)}),
        (BIASED, {"b": (1, SIZE)}),
        (BIASED, {"w": (SIZE, SIZE, SIZE), "b": (SIZE, SIZE)}),
        ("v = Neg(backbone__w)  a = MatMul(x, v)  y = Add(a, backbone__b)", {}),
    ],
)
def test_other_products_stay(body: str, shapes: dict[str, tuple[int, ...]]) -> None:
    model = product(body, shapes.get("b", (SIZE,))[-1], **shapes)
    run_passes(model, (fuse_gelu, convert_floats("fp16"), remove_dead_nodes))
    assert fuse_bias_products(model) == 0


def test_a_bias_that_is_no_weight_stays() -> None:
    body = "m = MatMul(x, w)  y = Add(m, b)"
    text = f"g (float16[rows,8] x, float16[8] b) => (float16[rows,8] y) <float16[rows,8] m> {{ {body} }}"
    assert fuse_bias_products(build(text, w=random(SIZE, SIZE).astype(np.float16))) == 0


def test_a_product_in_float32_stays() -> None:
    model = product("y = Add(m, backbone__b)")
    convert_floats("fp16", kept=["m", "y"])(model)
    assert "BiasMatMul" not in ops(model)
    assert fuse_bias_products(model) == 0
