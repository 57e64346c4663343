"""What an operator of the CUDA graphs is, in numpy: it computes in float32 whatever the type, and rounds at its end."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx.reference.op_run import OpRun

HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
GARBAGE = 512.0
"""Size of the numbers that stand where a kernel leaves whatever it likes, finite: far from all that models compute."""


class ContribOp(OpRun):
    """An operator of ONNX Runtime's own; a subclass is named after it and computes in ``_run``."""

    op_domain = "com.microsoft"
    op_schema = None  # or the evaluator adds the attributes of a standard operator of the same name
    poison = True
    """Whether rows that a kernel leaves undefined are garbage here; else they are what it would compute of them."""

    def refuse(self, given: bool, what: str, why: str) -> None:
        if given:
            raise ValueError(f"{type(self).__name__} {self.onnx_node.name!r}: {what}: {why}")


def widen(array: np.ndarray | None) -> np.ndarray | None:
    return array.astype(np.float32) if array is not None and array.dtype in HALVES else array


def garbage(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([-GARBAGE, GARBAGE], np.float32), shape)


def widened(operator: type[OpRun]) -> type[OpRun]:
    """A standard operator that computes in float32 where it is given halves, as CUDA's kernels accumulate."""

    def run(self, *inputs, **others):
        half = next((array.dtype for array in inputs if getattr(array, "dtype", None) in HALVES), None)
        if half is None:
            return operator.run(self, *inputs, **others)
        wide = [widen(array) if isinstance(array, np.ndarray) else array for array in inputs]
        outputs = operator.run(self, *wide, **others)
        return tuple(array.astype(half) if getattr(array, "dtype", None) == np.float32 else array for array in outputs)

    return type(operator.__name__, (operator,), {"run": run, "op_domain": ""})
