"""Shapes of operators whose answers a trace would else compute step by step.

A trace runs the model on tensors without memory. Torch finds the shape of a product with a bias by three operators, of
a layer norm by a dozen, each with symbolic sizes, which is much of the time of tracing an encoder. Both are known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], weight.shape[0]))


def _layer_norm(rows: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


KNOWN: Mapping[Any, Callable[..., Tensor]] = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.layer_norm.default: _layer_norm,
}
"""Operators, and what makes a tensor of their answer's shape."""


@contextlib.contextmanager
def known_shapes() -> Iterator[None]:
    """Within, torch's Python dispatcher makes these operators' answers of the right shape alone: for traces only."""
    # Private places: where they have moved, traces only take longer.
    key = getattr(getattr(torch._C, "DispatchKey", None), "CompositeImplicitAutograd", None)
    if key is None or not all(hasattr(it, "py_kernels") and hasattr(it, "_dispatch_cache") for it in KNOWN):
        yield
        return
    with contextlib.ExitStack() as stack:
        for operator, shape in KNOWN.items():
            stack.enter_context(_kernel(operator, key, shape))
        yield


@contextlib.contextmanager
def _kernel(operator: Any, key: Any, kernel: Callable[..., Tensor]) -> Iterator[None]:
    original = operator.py_kernels.get(key)
    operator.py_kernels[key] = kernel
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        del operator.py_kernels[key]
        if original is not None:
            operator.py_kernels[key] = original
        operator._dispatch_cache.clear()
