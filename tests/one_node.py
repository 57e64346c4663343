"""Graphs of one operator: evaluated in numpy, and compared with ONNX Runtime's CPU kernel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from cuda_operators import run_reference
from little_graphs import session

TYPES = {
    np.dtype(np.float32): "float",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(np.int32): "int32",
    np.dtype(np.int64): "int64",
}
TOLERANCE = {"float": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}


def one_node(operator: str, inputs: list[np.ndarray | None], outputs: int = 1, **attributes) -> tuple[ir.Model, dict]:
    """A graph of one operator, ``domain.Name``, and its feeds; None is an input that is left out."""
    feeds = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
    given = ", ".join(
        f"{TYPES[array.dtype]}[{','.join(map(str, array.shape))}] {name}" for name, array in feeds.items()
    )
    kind = TYPES[inputs[0].dtype]
    names = ", ".join("" if array is None else f"i{index}" for index, array in enumerate(inputs))
    results = ", ".join(f"{kind} y{index}" for index in range(outputs))
    written = ", ".join(
        f'{name} = "{it}"' if isinstance(it, str) else f"{name} = {it}" for name, it in attributes.items()
    )
    call = f"{operator}<{written}>({names})" if written else f"{operator}({names})"
    made = ", ".join(f"y{index}" for index in range(outputs))
    header = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
    return ir.from_onnx_text(f"{header}\ng ({given}) => ({results}) {{ {made} = {call} }}"), feeds


def evaluate(operator: str, *inputs, outputs: int = 1, poison: bool = False, **attributes) -> list[np.ndarray]:
    model, feeds = one_node(operator, list(inputs), outputs, **attributes)
    return list(run_reference(model, feeds, poison=poison).values())


def compare(operator: str, *inputs, outputs: int = 1, tolerance: float = 2e-6, **attributes) -> None:
    """Check an operator against ONNX Runtime's CPU kernel, in the type of its inputs."""
    model, feeds = one_node(operator, list(inputs), outputs, **attributes)
    expected = session(model).run(None, feeds)
    for left, right in zip(expected, run_reference(model, feeds, poison=False).values(), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(right.astype(np.float32), left.astype(np.float32), rtol=tolerance, atol=tolerance)
